"""Universal perturbation by DeepFool steps (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Problem, SharedAttack, SharedProblem, hookimpl, select_column


@dataclass(frozen=True)
class UniversalDeepFool:
    """Adds, image by image, the smallest change that fools the model there, and projects.

    For each training image that the change does not fool yet, DeepFool steps onto the nearest
    linearised boundary are made from the changed image. It ends where a share of the images is
    fooled. An image is fooled where the predicted class is not that of the clean image.
    """

    name = "universal-deepfool"
    needs = Access.GRADIENTS
    norms = ("linf-delta", "l2-delta")
    goals = ("untargeted",)
    cite = "arXiv:1610.08401"
    summary = "One change for all images, the projected sum of DeepFool steps."

    images: int = 500
    """Number of training images used; 0: all."""
    passes: int = 5
    fooled: float = 0.8
    """Share of the images at which it ends."""
    steps_of_image: int = 10
    overshoot: float = 0.02
    candidates: int = 10
    """Number of classes considered, the predicted one included."""

    def fit(self, problem: SharedProblem) -> Tensor:
        """The change [1, C, H, W] that fooled the most images at the end of a pass."""
        change = best = problem.start
        chosen = problem.order(0)[: self.images or problem.count]
        most = -1
        for number in range(self.passes):
            order = problem.order(number + 1)
            for index in torch.split(order[torch.isin(order, chosen)], 1):
                change = self._fool(problem, problem.rows(index), change)
            rows = problem.rows(chosen)
            count = int(is_fooled(rows, change).sum())
            if count > most:
                best, most = change, count
            if count >= self.fooled * len(chosen):
                break
        return best

    def _fool(self, problem: SharedProblem, row: Problem, change: Tensor) -> Tensor:
        """The change after the steps on one image, projected; itself where it fools the model."""
        own = row.clean_logits.argmax(1)
        every = row.clean_logits.argsort(dim=1, descending=True, stable=True)[:, : self.candidates]
        rivals = every[every != own][None]
        moved, longer = change, change
        for _ in range(self.steps_of_image):
            slopes, logits = row.jacobian(longer, rivals, minus=own)
            if int(logits.argmax(1)) != int(own):
                break
            gaps = select_column(logits, own)[:, None] - logits.gather(1, rivals)
            moved = moved + nearest_step(problem, slopes[0], gaps[0])
            longer = change + (1 + self.overshoot) * (moved - change)
        if moved is change:
            return change
        return problem.ball.project(longer, row.x)


def nearest_step(problem: SharedProblem, slopes: Tensor, gaps: Tensor) -> Tensor:
    """The shortest change [1, ...] onto a linearised boundary; slopes [k, ...], gaps [k].

    In the norm of the set: its dual norm of a slope w is <w, steepest(w)>.
    """
    direction = problem.ball.steepest(slopes, slopes)
    dual = (slopes * direction).flatten(1).sum(1).clamp_min(1e-12)
    length = gaps.clamp_min(0) / dual + 1e-6
    near = int(length.argmin())
    return length[near] * direction[near : near + 1]


def is_fooled(rows: Problem, change: Tensor) -> Tensor:
    """[n] bool: the change [1, ...] turns the predicted class of the clean image into another."""
    logits = rows.logits(change.expand(len(rows.x), *change.shape[1:]))
    return logits.argmax(1) != rows.clean_logits.argmax(1)


@hookimpl
def bench_attacks() -> Iterator[SharedAttack]:
    """Register it with the published settings and 500 images."""
    yield UniversalDeepFool()

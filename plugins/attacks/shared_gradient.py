"""One point for all images by gradients: universal perturbations and patches, and a random one.

Mean gradients over training images, with EOT over what the set draws for each image: Shafahi et al.
2020 (arXiv:1811.11304) for changes, Brown et al. 2017 (arXiv:1712.09665) for patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Loss, SharedAttack, SharedProblem, cross_entropy, hookimpl


@dataclass(frozen=True)
class SharedGradient:
    """Projected steepest ascent of one point on the mean loss of training images.

    The label of an image is the class that the model predicts for the clean one. Each batch has a
    new draw of what the set draws for each image, so the mean is over both. The loss is the
    cross-entropy up to a ceiling, so that images that are fooled already do not lead the ascent.
    """

    name: str
    norms: tuple[str, ...]
    cite: str
    summary: str
    epochs: int = 20
    batch: int = 128
    rate: float = 0.1
    """Length of the first step in radii; the steps shrink linearly to zero."""
    ceiling: float = 5.0

    needs = Access.GRADIENTS
    goals = ("untargeted",)

    def fit(self, problem: SharedProblem) -> Tensor:
        """Ascend from a random point."""
        x = problem.rows(problem.order(0)[:1]).x
        point = problem.ball.sample(x, problem.draws)
        steps, done = self.epochs * -(-problem.count // self.batch), 0
        for epoch in range(self.epochs):
            for index in torch.split(problem.order(epoch), self.batch):
                done += 1
                gradient = self._mean_gradient(problem, point, index, done)
                rate = self.rate * (1 - (done - 1) / steps)
                point = problem.ball.ascend(point, gradient, rate, x)
        return point

    def _mean_gradient(
        self, problem: SharedProblem, point: Tensor, index: Tensor, draw: int
    ) -> Tensor:
        """The mean gradient [1, ...] of the loss over images, at a draw for each of them."""
        rows = problem.rows(index, draw)
        loss = capped_cross_entropy(rows.clean_logits.argmax(1), self.ceiling)
        points = point.expand(len(index), *point.shape[1:])
        return rows.gradient(points, loss).gradient.mean(0, keepdim=True)


def capped_cross_entropy(label: Tensor, ceiling: float) -> Loss:
    """The cross-entropy of the classes `label` [n], whose gradient is zero above the ceiling."""

    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        return cross_entropy(logits, label).clamp_max(ceiling)

    return loss


@dataclass(frozen=True)
class SharedRandom:
    """A random corner of the set: random signs, or a random direction of full length in L2.

    The control of every attack that fits a point.
    """

    name = "shared-random"
    needs = Access.NOTHING
    coordinates = True
    goals = ("untargeted",)
    samples = True
    summary = "One random point at the edge of the set, for all images."

    def fit(self, problem: SharedProblem) -> Tensor:
        """The point farthest along a normal direction."""
        start = problem.start
        direction = problem.draws.normal("corner", tuple(start.shape[1:]))
        return problem.ball.farthest(direction, start)


@hookimpl
def bench_attacks() -> Iterator[SharedAttack]:
    """Register the universal perturbation, the adversarial patch and their random control."""
    yield SharedGradient(
        "universal-gradient", ("linf-delta", "l2-delta"), "arXiv:1811.11304",
        "One change for all images, by steps along the mean gradient.",
    )  # fmt: skip
    yield SharedGradient(
        "adversarial-patch", ("random-patch", "patch"), "arXiv:1712.09665",
        "One patch for all images, by mean gradients over place, scale and rotation.",
    )  # fmt: skip
    yield SharedRandom()

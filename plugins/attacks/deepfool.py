"""DeepFool: make the model linear, step over its nearest border, look again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.kit import per_image, pick
from bench.plugin import Access, Attack, Problem, Retire, hookimpl


class State(NamedTuple):
    """Where the walk stands."""

    adv: Tensor
    """[n, C, H, W]: x + (1 + overshoot) r, what is asked next."""
    change: Tensor
    """[n, C, H, W]: r, the sum of the steps."""
    crossed: Tensor
    """[n] bool: adv was found wrong; the row is done."""


@dataclass(frozen=True)
class DeepFool:
    """r_k = |f_k| / ||w_k||* towards the nearest linearised border (arXiv:1511.04599).

    f_k = z_k - z_label and w_k is its gradient. The dual norm ||w||* is <w, steepest(w)>, so the
    set decides the norm: in L2 the step is |f| w / ||w||^2, in Linf |f| sign(w) / ||w||_1.
    """

    name = "deepfool"
    needs = Access.GRADIENTS
    goals = ("untargeted", "nearest")
    retires = Retire.CONVERGENCE
    minimises = True
    cite = "arXiv:1511.04599"
    summary = "Steps to the nearest linearised border until the label flips."

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    """Classes looked at, the own one included: the likeliest on the clean image."""

    def start(self, problem: Problem) -> State:
        """The clean image."""
        nothing = torch.zeros_like(problem.x)
        return State(problem.x, nothing, torch.zeros_like(problem.y, dtype=torch.bool))

    def step(self, problem: Problem, state: State) -> State:
        """Ask where the borders are; a row that is wrong already stays."""
        adv, change, crossed = state
        rivals = problem.rivals[:, : self.candidates - 1]
        classes = torch.cat([problem.y[:, None], rivals], 1)
        rows, logits = problem.jacobian(adv, classes, ~crossed)
        crossed = crossed | problem.wrong(logits)
        gap = pick(logits, problem.y)[:, None] - logits.gather(1, rivals)
        change = change + to_border(problem, adv, gap, rows[:, 1:] - rows[:, :1])
        change = (problem.x + change).clamp(0, 1) - problem.x
        beyond = (problem.x + (1 + self.overshoot) * change).clamp(0, 1)
        keep = per_image(crossed)
        return State(
            torch.where(keep, adv, beyond), torch.where(keep, state.change, change), crossed
        )

    def done(self, state: State) -> Tensor:
        """[n] bool: the label has flipped."""
        return state.crossed


def to_border(problem: Problem, adv: Tensor, gap: Tensor, slopes: Tensor) -> Tensor:
    """[n, C, H, W]: the step that brings the nearest of the linear gaps [n, k] to zero.

    `slopes` [n, k, C, H, W] are the gradients of -gap. A gap without slope is out of reach.
    """
    directions = torch.stack([problem.ball.steepest(w, adv) for w in slopes.unbind(1)], 1)
    dual = (slopes * directions).flatten(2).sum(2)
    length = torch.where(dual > 0, gap.clamp_min(0) / dual, torch.inf)
    nearest = length.argmin(1)
    step = pick(length, nearest).nan_to_num(posinf=0)
    own = directions[torch.arange(len(nearest), device=nearest.device), nearest]
    return per_image(step) * own


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """With the paper's overshoot and at most ten classes."""
    yield DeepFool()

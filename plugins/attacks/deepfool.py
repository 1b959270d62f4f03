"""DeepFool: repeated steps onto the nearest linearised decision boundary.

Moosavi-Dezfooli et al. 2016, arXiv:1511.04599.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    Attack,
    Problem,
    StopRule,
    hookimpl,
    margin,
    per_row,
    select_column,
)
from plugins.attacks._decision_boundary import Segment, nearest_boundary, step_onto


class State(NamedTuple):
    """State of DeepFool."""

    adv: Tensor
    """[n, C, H, W]: x + (1 + overshoot) r, or the result of the secant search; queried already."""
    change: Tensor
    """[n, C, H, W]: r, the sum of the steps."""
    flipped: Tensor
    """[n] bool: `adv` is misclassified and the row is done."""


@dataclass(frozen=True)
class DeepFool:
    """DeepFool: steps of |f_k| / ||w_k||* onto the nearest linearised boundary (arXiv:1511.04599).

    f_k = z_k - z_label and w_k is its gradient. The dual norm ||w||* is <w, steepest(w)>, so the
    set decides the norm: in L2 the step is |f| w / ||w||^2, in Linf |f| sign(w) / ||w||_1, both
    over the pixels that can move. The last step is shortened by secants, which cost one query each
    where a step costs k gradient evaluations.
    """

    name = "deepfool"
    needs = Access.GRADIENTS
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1511.04599"
    summary = "Steps onto the nearest linearised decision boundary until the label changes."

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    """Number of classes considered, the predicted one included; the most likely on the clean image.
    """
    search: int = 3
    """Secants on the last step; 0 is the published attack."""
    lean: float = 0.05
    """A secant aims beyond the boundary by this share of the rest of the segment."""

    def start(self, problem: Problem) -> State:
        """The clean image."""
        zero = torch.zeros_like(problem.x)
        return State(problem.x, zero, torch.zeros_like(problem.y, dtype=torch.bool))

    def step(self, problem: Problem, state: State) -> State:
        """Linearise the boundaries, step over the nearest one, and query the image reached."""
        adv, change, crossed = state
        rivals = problem.other_classes[:, : self.candidates - 1]
        slopes, logits = problem.jacobian(adv, rivals, ~crossed, minus=problem.y)
        walking = ~crossed & ~problem.reaches_goal(logits)
        gaps = logits.gather(1, rivals) - select_column(logits, problem.y)[:, None]
        change = change + step_onto(
            problem.ball, adv, nearest_boundary(problem.ball, adv, slopes, gaps)
        )
        change = (problem.x + change).clamp(0, 1) - problem.x
        beyond = (problem.x + (1 + self.overshoot) * change).clamp(0, 1)
        new_logits = problem.logits(beyond, walking)
        wrong = walking & problem.reaches_goal(new_logits)
        segment = Segment(adv, margin(logits, problem.y), beyond, margin(new_logits, problem.y))
        moves = per_row(walking)
        return State(
            torch.where(moves, self._secant_search(problem, segment, wrong), adv),
            torch.where(moves, change, state.change),
            ~walking | wrong,
        )

    def done(self, state: State) -> Tensor:
        """Whether the label has changed, [n] bool."""
        return state.flipped

    def _secant_search(self, problem: Problem, segment: Segment, where: Tensor) -> Tensor:
        """The outer end [n, C, H, W], moved near to the boundary in the rows `where` [n] bool."""
        current = segment
        for _ in range(self.search):
            image = current.crossing(self.lean)
            logits = problem.logits(image, where)
            current = current.narrowed(
                image, margin(logits, problem.y), problem.reaches_goal(logits)
            )
        return torch.where(per_row(where), current.outer, segment.outer)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register DeepFool with the paper's overshoot and at most ten classes."""
    yield DeepFool()

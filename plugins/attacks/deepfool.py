"""DeepFool: make the model linear, step over its nearest border, look again."""

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
    per_image,
    select_column,
)
from plugins.attacks._decision_boundary import Segment, nearest_boundary, step_onto


class State(NamedTuple):
    """Where the walk stands."""

    adv: Tensor
    """[n, C, H, W]: x + (1 + overshoot) r, or what the search made of it; asked already."""
    change: Tensor
    """[n, C, H, W]: r, the sum of the steps."""
    flipped: Tensor
    """[n] bool: adv was found wrong; the row is done."""


@dataclass(frozen=True)
class DeepFool:
    """r_k = |f_k| / ||w_k||* towards the nearest linearised border (arXiv:1511.04599).

    f_k = z_k - z_label and w_k is its gradient. The dual norm ||w||* is <w, steepest(w)>, so the
    set decides the norm: in L2 the step is |f| w / ||w||^2, in Linf |f| sign(w) / ||w||_1, both
    over the pixels that can move. The step that crosses the border is cut back by secants: a
    forward each, where a step costs k gradients.
    """

    name = "deepfool"
    needs = Access.GRADIENTS
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1511.04599"
    summary = "Steps to the nearest linearised border until the label flips."

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    """Classes looked at, the own one included: the likeliest on the clean image."""
    search: int = 3
    """Secants on the last step; 0 leaves the published attack."""
    lean: float = 0.05
    """A secant aims so much of the rest of the way beyond the border."""

    def start(self, problem: Problem) -> State:
        """The clean image."""
        nothing = torch.zeros_like(problem.x)
        return State(problem.x, nothing, torch.zeros_like(problem.y, dtype=torch.bool))

    def step(self, problem: Problem, state: State) -> State:
        """Ask where the borders are, step over the nearest, ask on which side that is."""
        adv, change, crossed = state
        rivals = problem.rivals[:, : self.candidates - 1]
        slopes, logits = problem.jacobian(adv, rivals, ~crossed, minus=problem.y)
        walking = ~crossed & ~problem.wrong(logits)
        gaps = logits.gather(1, rivals) - select_column(logits, problem.y)[:, None]
        change = change + step_onto(
            problem.ball, adv, nearest_boundary(problem.ball, adv, slopes, gaps)
        )
        change = (problem.x + change).clamp(0, 1) - problem.x
        beyond = (problem.x + (1 + self.overshoot) * change).clamp(0, 1)
        answer = problem.logits(beyond, walking)
        wrong = walking & problem.wrong(answer)
        span = Segment(adv, margin(logits, problem.y), beyond, margin(answer, problem.y))
        moves = per_image(walking)
        return State(
            torch.where(moves, self._secant_search(problem, span, wrong), adv),
            torch.where(moves, change, state.change),
            ~walking | wrong,
        )

    def done(self, state: State) -> Tensor:
        """[n] bool: the label has flipped."""
        return state.flipped

    def _secant_search(self, problem: Problem, span: Segment, where: Tensor) -> Tensor:
        """[n, C, H, W]: the outer end, brought near to the border in the rows `where` [n] bool."""
        ended = span
        for _ in range(self.search):
            image = ended.crossing(self.lean)
            logits = problem.logits(image, where)
            ended = ended.narrowed(image, margin(logits, problem.y), problem.wrong(logits))
        return torch.where(per_image(where), ended.outer, span.outer)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """With the paper's overshoot and at most ten classes."""
    yield DeepFool()

"""FAB: project onto the linearised border, lean towards the clean image, step back over it."""

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
    hookimpl,
    margin,
    margin_to,
    per_image,
    select_column,
)
from plugins.attacks._decision_boundary import LinearBoundary, Segment, nearest_boundary

MIN_DISTANCE = 1e-8  # a distance below it has no direction


class State(NamedTuple):
    """Where the walk of each row stands, and the nearest success it has met."""

    adv: Tensor
    """[n, C, H, W]: the nearest success; the clean image until there is one."""
    distance: Tensor
    """[n]: of it; infinite until there is one."""
    outer_margin: Tensor
    """[n]: its margin, which is positive."""
    point: Tensor
    """[n, C, H, W]: where the border is linearised next; in the search, the last right answer."""
    inner_margin: Tensor
    """[n]: the margin of the last right answer, which is negative."""


@dataclass(frozen=True)
class FAB:
    """x_{i+1} = (1 - a)(x_i + eta d) + a (x + eta d'), with d and d' the ways onto the border.

    a = min(||d|| / (||d|| + ||d'||), alpha), and every success is pulled back to
    (1 - beta) x + beta x_{i+1} before the next step. The last steps search between the nearest
    success and the clean image for the border by secants (arXiv:1907.02044).
    """

    name: str
    targeted: bool
    """Each run keeps to the border of one rival; else every step takes the nearest border."""
    summary: str
    walk: int = 100
    """Steps of a run that walk along the border."""
    search: int = 3
    """Steps of a run that search on the straight line."""
    alpha: float = 0.1
    """Largest pull towards the clean image."""
    eta: float = 1.05
    """A way onto the border is made so many times as long."""
    beta: float = 0.9
    """Share of a success's change that is kept."""
    lean: float = 0.05
    """A secant aims so much of the rest of the way beyond the border."""
    targets: int = 9
    """Rivals tried by the targeted form, the likeliest first."""

    needs = Access.GRADIENTS
    goals = ("untargeted", "nearest")
    minimises = True
    cite = "arXiv:1907.02044"

    @property
    def steps(self) -> int:
        """The walk and the search."""
        return self.walk + self.search

    def restart_count(self, classes: int) -> int:
        """One, or one for each rival."""
        return min(self.targets, classes - 1) if self.targeted else 1

    def start(self, problem: Problem) -> State:
        """The clean image, nothing found."""
        zero = torch.zeros_like(problem.x[:, 0, 0, 0])
        return State(problem.x, zero + torch.inf, zero, problem.x, zero)

    def step(self, problem: Problem, state: State) -> State:
        """Ask for the border while walking; then, of every row, whether its next image is wrong."""
        walking = problem.t < self.walk
        state = begin_search(problem, state, problem.t == self.walk)
        ahead = self._next_query(
            problem, state.point, self._boundary(problem, state.point, walking)
        )
        span = Segment(state.point, state.inner_margin, state.adv, state.outer_margin)
        asked = torch.where(per_image(walking), ahead, span.crossing(self.lean))
        answer = problem.logits(asked, walking | state.distance.isfinite())
        success = problem.wrong(answer)
        excess = margin(answer, problem.y)
        back = problem.x + self.beta * (asked - problem.x)
        onward = torch.where(per_image(walking), back, state.point)
        return with_nearest(problem, state, asked, success, excess)._replace(
            point=torch.where(per_image(success), onward, asked),
            inner_margin=torch.where(success, state.inner_margin, excess),
        )

    def _boundary(self, problem: Problem, point: Tensor, where: Tensor) -> LinearBoundary:
        if self.targeted:
            rival = select_column(problem.rivals, problem.restart)
            slope, gap, _ = problem.gradient(point, margin_to(rival), where)
            return LinearBoundary(slope, gap)
        slopes, logits = problem.jacobian(point, problem.rivals, where, minus=problem.y)
        gaps = logits.gather(1, problem.rivals) - select_column(logits, problem.y)[:, None]
        return nearest_boundary(problem.ball, point, slopes, gaps)

    def _next_query(self, problem: Problem, point: Tensor, border: LinearBoundary) -> Tensor:
        """The next image of the walk, between the overshot projections of point and x."""
        ball, x = problem.ball, problem.x
        missing = -border.gap - (border.slope * (x - point)).flatten(1).sum(1)
        here = torch.cat([point, x])
        there = ball.onto(border.slope.repeat(2, 1, 1, 1), torch.cat([-border.gap, missing]), here)
        near, far = ball.distance(there, here).clamp_min(MIN_DISTANCE).chunk(2)
        pull = per_image((near / (near + far)).clamp_max(self.alpha))
        beyond, origin = (here + self.eta * (there - here)).chunk(2)
        return ((1 - pull) * beyond + pull * origin).clamp(0, 1)


def with_nearest(
    problem: Problem, state: State, asked: Tensor, success: Tensor, excess: Tensor
) -> State:
    """Remember the image asked where it is a success, and nearer than the one at hand."""
    distance = problem.ball.distance(asked, problem.x)
    nearer = success & (distance < state.distance)
    return state._replace(
        adv=torch.where(per_image(nearer), asked, state.adv),
        distance=torch.where(nearer, distance, state.distance),
        outer_margin=torch.where(nearer, excess, state.outer_margin),
    )


def begin_search(problem: Problem, state: State, where: Tensor) -> State:
    """Rows [n] bool that begin the search: the last right answer is the clean image."""
    depth = margin(problem.clean_logits, problem.y)
    return state._replace(
        point=torch.where(per_image(where), problem.x, state.point),
        inner_margin=torch.where(where, depth, state.inner_margin),
    )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Towards the nearest border, and towards each of up to nine rivals."""
    yield FAB("fab", False, "Walks along the nearest border, ever nearer to the clean image.")
    yield FAB("fab-t", True, "Walks along the border of up to nine rivals, one a run.")

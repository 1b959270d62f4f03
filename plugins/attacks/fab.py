"""FAB: projects onto the linearised decision boundary, biased towards the clean image.

Croce and Hein 2020, arXiv:1907.02044.
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
    hookimpl,
    margin,
    margin_to,
    per_row,
    select_column,
)
from plugins.attacks._decision_boundary import LinearBoundary, Segment, nearest_boundary

MIN_DISTANCE = 1e-8  # smallest distance that is divided by


class State(NamedTuple):
    """State of FAB with the nearest adversarial image."""

    adv: Tensor
    """[n, C, H, W]: the nearest adversarial image; the clean image until there is one."""
    distance: Tensor
    """[n]: its distance; infinite until there is one."""
    outer_margin: Tensor
    """[n]: its margin, which is positive."""
    point: Tensor
    """[n, C, H, W]: where the boundary is linearised next; in the search the last correct image."""
    inner_margin: Tensor
    """[n]: the margin of the last correctly classified image, which is negative."""


@dataclass(frozen=True)
class FAB:
    """FAB: steps onto the linearised decision boundary, biased towards the clean image.

    x_{i+1} = (1 - a)(x_i + eta d) + a (x + eta d'), with d and d' the steps onto the boundary from
    x_i and x, and a = min(||d|| / (||d|| + ||d'||), alpha). Every adversarial image is moved back
    to (1 - beta) x + beta x_{i+1} before the next step. The last steps are secants between the
    nearest adversarial image and the clean one (arXiv:1907.02044).
    """

    name: str
    targeted: bool
    """Each restart uses the boundary to one target class; otherwise each step uses the nearest one.
    """
    summary: str
    walk: int = 100
    """Projection steps of a restart."""
    search: int = 3
    """Secant steps at the end of a restart."""
    alpha: float = 0.1
    """Largest bias towards the clean image."""
    eta: float = 1.05
    """Factor by which a step onto the boundary is lengthened."""
    beta: float = 0.9
    """Share of an adversarial image's perturbation that is kept."""
    lean: float = 0.05
    """A secant aims beyond the boundary by this share of the rest of the segment."""
    targets: int = 9
    """Number of target classes of the targeted form, the most likely ones first."""

    needs = Access.GRADIENTS
    goals = ("untargeted", "nearest")
    minimises = True
    cite = "arXiv:1907.02044"

    @property
    def steps(self) -> int:
        """Projection steps and secant steps."""
        return self.walk + self.search

    def restart_count(self, classes: int) -> int:
        """One restart, or one for each target class."""
        return min(self.targets, classes - 1) if self.targeted else 1

    def start(self, problem: Problem) -> State:
        """The clean image, with no adversarial image known."""
        zero = torch.zeros_like(problem.x[:, 0, 0, 0])
        return State(problem.x, zero + torch.inf, zero, problem.x, zero)

    def step(self, problem: Problem, state: State) -> State:
        """Query the next image of each row: an overshot projection, or the crossing of a secant."""
        walking = problem.t < self.walk
        state = begin_search(problem, state, problem.t == self.walk)
        ahead = self._next_query(
            problem, state.point, self._boundary(problem, state.point, walking)
        )
        segment = Segment(state.point, state.inner_margin, state.adv, state.outer_margin)
        query = torch.where(per_row(walking), ahead, segment.crossing(self.lean))
        logits = problem.logits(query, walking | state.distance.isfinite())
        success = problem.reaches_goal(logits)
        new_margin = margin(logits, problem.y)
        back = problem.x + self.beta * (query - problem.x)
        onward = torch.where(per_row(walking), back, state.point)
        return with_nearest(problem, state, query, success, new_margin)._replace(
            point=torch.where(per_row(success), onward, query),
            inner_margin=torch.where(success, state.inner_margin, new_margin),
        )

    def _boundary(self, problem: Problem, point: Tensor, where: Tensor) -> LinearBoundary:
        if self.targeted:
            target = select_column(problem.other_classes, problem.restart)
            slope, gap, _ = problem.gradient(point, margin_to(target), where)
            return LinearBoundary(slope, gap)
        slopes, logits = problem.jacobian(point, problem.other_classes, where, minus=problem.y)
        gaps = logits.gather(1, problem.other_classes) - select_column(logits, problem.y)[:, None]
        return nearest_boundary(problem.ball, point, slopes, gaps)

    def _next_query(self, problem: Problem, point: Tensor, boundary: LinearBoundary) -> Tensor:
        """The next query, between the overshot projections of point and x."""
        ball, x = problem.ball, problem.x
        missing = -boundary.gap - (boundary.slope * (x - point)).flatten(1).sum(1)
        here = torch.cat([point, x])
        there = ball.onto(
            boundary.slope.repeat(2, 1, 1, 1), torch.cat([-boundary.gap, missing]), here
        )
        near, far = ball.distance(there, here).clamp_min(MIN_DISTANCE).chunk(2)
        pull = per_row((near / (near + far)).clamp_max(self.alpha))
        beyond, origin = (here + self.eta * (there - here)).chunk(2)
        return ((1 - pull) * beyond + pull * origin).clamp(0, 1)


def with_nearest(
    problem: Problem, state: State, query: Tensor, success: Tensor, new_margin: Tensor
) -> State:
    """The state with the queried images [n, C, H, W] that are adversarial and nearer than the best.

    `success` [n] bool and `new_margin` [n] are the result of the query and the margin.
    """
    distance = problem.ball.distance(query, problem.x)
    nearer = success & (distance < state.distance)
    return state._replace(
        adv=torch.where(per_row(nearer), query, state.adv),
        distance=torch.where(nearer, distance, state.distance),
        outer_margin=torch.where(nearer, new_margin, state.outer_margin),
    )


def begin_search(problem: Problem, state: State, where: Tensor) -> State:
    """Begin the secant search in rows `where` [n] bool, from the clean image as the correct end."""
    depth = margin(problem.clean_logits, problem.y)
    return state._replace(
        point=torch.where(per_row(where), problem.x, state.point),
        inner_margin=torch.where(where, depth, state.inner_margin),
    )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register FAB towards the nearest boundary, and towards each of up to nine target classes."""
    yield FAB(
        "fab",
        False,
        "Projections onto the nearest linearised boundary, biased towards the clean image.",
    )
    yield FAB(
        "fab-t",
        True,
        "FAB towards the boundary of up to nine target classes, one a restart.",
    )

"""MMA training: maximises the margin of each image, up to a largest one.

Ding et al. 2020, arXiv:1812.02637.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    Attack,
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Problem,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
    per_row,
)
from plugins.defenses._cnn import cnn, trained

WEIGHT = 1 / 3
LARGEST = Fraction(102, 255)


def mma_loss(batch: TrainingBatch, weight: float) -> Tensor:
    """The MMA loss weight J(x) + (1 - weight) M(x) [n], with x' = batch.adv on the boundary.

    M = J(x') where x is right and the boundary was found: its gradient is that of the margin. M = 0
    where x is right out to the largest margin, where x' is at the radius, and M = J(x) where x is
    wrong.
    """
    logits, adv_logits = batch.model(batch.x), batch.model(batch.adv)
    clean, boundary = cross_entropy(logits, batch.y), cross_entropy(adv_logits, batch.y)
    safe = adv_logits.argmax(1) == batch.y
    margin = torch.where(logits.argmax(1) != batch.y, clean, boundary.masked_fill(safe, 0))
    return weight * clean + (1 - weight) * margin


class State(NamedTuple):
    """A segment from x to the endpoint of PGD, and the bounds of the boundary on it."""

    adv: Tensor
    """[n, C, H, W]: x + high (endpoint - x)."""
    endpoint: Tensor
    """[n, C, H, W]: the iterate of PGD."""
    low: Tensor
    """[n]: share of the segment that is classified correctly."""
    high: Tensor
    """[n]: share of the segment at which the label is wrong; 1 where none is known."""


@dataclass(frozen=True)
class BoundaryPGD:
    """PGD in the ball, then bisection of the segment from x to its endpoint (arXiv:1812.02637)."""

    name = "an-pgd"
    needs = Access.GRADIENTS
    goals = ("nearest",)
    minimises = True
    cite = "arXiv:1812.02637"
    summary = "PGD, then bisection back to the boundary: the inner attack of MMA training."

    climb: int = 40
    """Steps of PGD."""
    rate: float = 0.1
    """Their size, in radii of the ball."""
    search: int = 10
    """Queries of the bisection; the first is whether the endpoint is misclassified."""

    @property
    def steps(self) -> int:
        """Steps of PGD and of the bisection."""
        return self.climb + self.search

    def start(self, problem: Problem) -> State:
        """A random point of the set; the bisection interval is the whole segment."""
        point = problem.ball.sample(problem.x, problem)
        zero = torch.zeros_like(point[:, 0, 0, 0])
        return State(point, point, zero, zero + 1)

    def step(self, problem: Problem, state: State) -> State:
        """One step of PGD, or one query of the bisection."""
        ascending = problem.t < self.climb
        stepped = self._pgd_step(problem, state, ascending) if ascending.any() else state
        cut = state if ascending.all() else self._bisect(problem, state, ~ascending)
        moves = per_row(ascending)
        return State(
            torch.where(moves, stepped.adv, cut.adv),
            torch.where(moves, stepped.endpoint, cut.endpoint),
            torch.where(ascending, state.low, cut.low),
            torch.where(ascending, state.high, cut.high),
        )

    def _pgd_step(self, problem: Problem, state: State, where: Tensor) -> State:
        gradient = problem.gradient(state.endpoint, cross_entropy, where).gradient
        end = problem.ball.ascend(state.endpoint, gradient, self.rate, problem.x)
        return state._replace(adv=end, endpoint=end)

    def _bisect(self, problem: Problem, state: State, where: Tensor) -> State:
        middle = torch.where(problem.t == self.climb, 1, (state.low + state.high) / 2)
        wrong = problem.reaches_goal(
            problem.labels(interpolate(problem.x, state.endpoint, middle), where)
        )
        low, high = torch.where(wrong, state.low, middle), torch.where(wrong, middle, state.high)
        return state._replace(adv=interpolate(problem.x, state.endpoint, high), low=low, high=high)


def interpolate(x: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """The point x + share (end - x) [n, C, H, W] in the box; `share` is [n]."""
    return (x + per_row(share) * (end - x)).clamp(0, 1)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the inner attack, which recipes name and runs may use as well."""
    yield BoundaryPGD()


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained by MMA, with boundaries up to twice the usual radius."""
    inner = InnerAttack("an-pgd", Linf(LARGEST), {"climb": 10, "rate": 0.25, "search": 10})
    yield Defense(
        name="mma",
        cite="arXiv:1812.02637",
        summary="Trained on the nearest boundary of each image, up to a radius of 102/255.",
        recipe=Recipe(
            cnn,
            partial(mma_loss, weight=WEIGHT),
            inner,
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"weight": WEIGHT},
        ),
        build=trained,
        quick=False,
    )

"""MMA training: push the border away from each image, up to a largest margin. Ding et al. 2020."""

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
    """weight J(x) + (1 - weight) M(x), with batch.adv on the border, or as far as is looked.

    M = J(x') where x is right and the border was found: its gradient is that of the margin.
    M = 0 where x is right out to the largest margin, and M = J(x) where x is wrong.
    """
    found, moved = batch.model(batch.x), batch.model(batch.adv)
    clean, border = cross_entropy(found, batch.y), cross_entropy(moved, batch.y)
    safe = moved.argmax(1) == batch.y
    margin = torch.where(found.argmax(1) != batch.y, clean, border.masked_fill(safe, 0))
    return weight * clean + (1 - weight) * margin


class State(NamedTuple):
    """A way out, and where on it the border is."""

    adv: Tensor
    """[n, C, H, W]: x + high (end - x)."""
    endpoint: Tensor
    """[n, C, H, W]: the iterate of PGD."""
    low: Tensor
    """[n]: share of the way that is answered right."""
    high: Tensor
    """[n]: share of the way that is answered wrong; 1 where none is."""


@dataclass(frozen=True)
class BoundaryPGD:
    """PGD in the ball, then bisection of the way from x to where it led (arXiv:1812.02637)."""

    name = "an-pgd"
    needs = Access.GRADIENTS
    goals = ("nearest",)
    minimises = True
    cite = "arXiv:1812.02637"
    summary = "PGD, then bisection back to the border: the inner attack of MMA training."

    climb: int = 40
    """Steps of PGD."""
    rate: float = 0.1
    """Their length, in radii of the ball."""
    search: int = 10
    """Questions of the bisection; the first is whether there is a border on the way."""

    @property
    def steps(self) -> int:
        """The climb and the search."""
        return self.climb + self.search

    def start(self, problem: Problem) -> State:
        """A random point of the set; the border is anywhere."""
        point = problem.ball.sample(problem.x, problem)
        zero = torch.zeros_like(point[:, 0, 0, 0])
        return State(point, point, zero, zero + 1)

    def step(self, problem: Problem, state: State) -> State:
        """One step of the climb, or one question of the search."""
        climbing = problem.t < self.climb
        climbed = self._pgd_step(problem, state, climbing) if climbing.any() else state
        cut = state if climbing.all() else self._bisect(problem, state, ~climbing)
        moves = per_row(climbing)
        return State(
            torch.where(moves, climbed.adv, cut.adv),
            torch.where(moves, climbed.endpoint, cut.endpoint),
            torch.where(climbing, state.low, cut.low),
            torch.where(climbing, state.high, cut.high),
        )

    def _pgd_step(self, problem: Problem, state: State, where: Tensor) -> State:
        slope = problem.gradient(state.endpoint, cross_entropy, where).gradient
        end = problem.ball.ascend(state.endpoint, slope, self.rate, problem.x)
        return state._replace(adv=end, endpoint=end)

    def _bisect(self, problem: Problem, state: State, where: Tensor) -> State:
        middle = torch.where(problem.t == self.climb, 1, (state.low + state.high) / 2)
        wrong = problem.reaches_goal(
            problem.labels(interpolate(problem.x, state.endpoint, middle), where)
        )
        low, high = torch.where(wrong, state.low, middle), torch.where(wrong, middle, state.high)
        return state._replace(adv=interpolate(problem.x, state.endpoint, high), low=low, high=high)


def interpolate(x: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """x + share (end - x) in the box; share is [n]."""
    return (x + per_row(share) * (end - x)).clamp(0, 1)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Offer the inner attack: training finds it by name, and it may play on boards as well."""
    yield BoundaryPGD()


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the network trained by MMA; it looks for borders further out than the board goes."""
    inner = InnerAttack("an-pgd", Linf(LARGEST), {"climb": 10, "rate": 0.25, "search": 10})
    yield Defense(
        name="mma",
        cite="arXiv:1812.02637",
        summary="Trained on the border nearest to each image, up to twice the board's radius.",
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

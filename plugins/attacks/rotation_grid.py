"""Grid search over rotations and translations (Engstrom et al. 2019, arXiv:1712.02779)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin, per_row


class State(NamedTuple):
    """The worst point of the grid so far."""

    adv: Tensor
    """[n, 3]: angle, shift to the right and down, each in [-1, 1]."""
    loss: Tensor
    """[n]: the margin of the best other class there."""


@dataclass(frozen=True)
class RotationGrid:
    """The worst of all points of a regular grid, which holds the clean image.

    Step t asks for the scores of the t-th point of the grid, for every example the same. The sizes
    are odd, so that the middle of each axis is zero (arXiv:1712.02779 uses 31 x 5 x 5).
    """

    name = "rotation-grid"
    needs = Access.SCORES
    norms = ("rotation-translation",)
    goals = ("untargeted",)
    cite = "arXiv:1712.02779"
    summary = "The worst of a grid of rotations and translations."

    angles: int = 31
    rights: int = 5
    downs: int = 5

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Values on each axis."""
        return self.angles, self.rights, self.downs

    @property
    def steps(self) -> int:
        """The number of points of the grid."""
        return prod(self.sizes)

    def start(self, problem: Problem) -> State:
        """The clean images, with no loss known."""
        adv = problem.ball.start(problem.x)
        return State(adv, torch.full_like(adv[:, 0], -torch.inf))

    def step(self, problem: Problem, state: State) -> State:
        """Ask for the scores of the next point, and keep it where it is worse."""
        point = problem.ball.radius * self.points(problem.t).to(state.adv)
        loss = margin(problem.logits(point), problem.y)
        worse = loss > state.loss
        adv = torch.where(per_row(worse, point), point, state.adv)
        return State(adv, torch.where(worse, loss, state.loss))

    def stays(self, before: State, after: State) -> Tensor:
        """[n] bool: the point was not worse."""
        return before.loss == after.loss

    def points(self, index: Tensor) -> Tensor:
        """The points [n, 3] of the grid with numbers `index` [n]; the last axis changes fastest."""
        columns = []
        for size in reversed(self.sizes):
            middle = (size - 1) / 2
            columns.append((index % size - middle) / max(middle, 1))
            index = index // size
        return torch.stack(columns[::-1], 1)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the grid of the paper."""
    yield RotationGrid()

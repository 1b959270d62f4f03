"""The unbounded attack: with the whole box to roam, every model with a useful gradient falls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin, per_image


@dataclass(frozen=True)
class Unbounded:
    """PGD on the margin; what it leaves standing in the box alone is a sign of masked gradients.

    The check is arXiv:1902.06705's. The first run begins at the clean image, later ones anywhere.
    """

    name = "unbounded"
    needs = Access.GRADIENTS
    cite = "arXiv:1902.06705"
    summary = "Margin PGD meant for the box alone; survivors are evidence, not robustness."

    steps: int = 100
    rate: float = 0.05
    """Step length, in radii."""
    restarts: int = 3

    def restart_count(self, classes: int) -> int:
        """Each restart is a run."""
        return self.restarts

    def start(self, problem: Problem) -> Tensor:
        """The clean image, then random points."""
        first = per_image(problem.restart == 0)
        return torch.where(first, problem.x, problem.ball.sample(problem.x, problem))

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step uphill, back into the set."""
        uphill = problem.gradient(adv, margin).gradient
        return problem.ball.ascend(adv, uphill, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Five radii in each of three runs."""
    yield Unbounded()

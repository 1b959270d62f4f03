"""Unbounded PGD: an attack over the whole pixel box that breaks any model with useful gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin, per_row


@dataclass(frozen=True)
class Unbounded:
    """PGD on the margin over the whole box; examples that stay robust indicate masked gradients.

    The check is from Carlini et al. 2019, arXiv:1902.06705. The first restart begins at the clean
    image, later ones at random points.
    """

    name = "unbounded"
    needs = Access.GRADIENTS
    cite = "arXiv:1902.06705"
    summary = (
        "PGD on the margin over the whole pixel box; robust examples indicate masked gradients."
    )

    steps: int = 100
    rate: float = 0.05
    """Step size, in radii."""
    restarts: int = 3

    def restart_count(self, classes: int) -> int:
        """The number of restarts."""
        return self.restarts

    def start(self, problem: Problem) -> Tensor:
        """The clean images [n, C, H, W], then random points."""
        first = per_row(problem.restart == 0)
        return torch.where(first, problem.x, problem.ball.sample(problem.x, problem))

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent, projected onto the set; [n, C, H, W]."""
        gradient = problem.gradient(adv, margin).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with three restarts of five radii each."""
    yield Unbounded()

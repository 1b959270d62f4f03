"""Multi-targeted PGD: ascends the margin to one other class after another.

Gowal et al. 2019, arXiv:1910.09338.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin_to, select_column


@dataclass(frozen=True)
class MarginPGD:
    """PGD on z_target - z_label, with one other class as the target in each restart.

    Restart r takes the r-th most likely other class (arXiv:1910.09338). The gradient of a
    difference of logits does not vanish where the softmax is saturated.
    """

    name = "pgd-margin"
    needs = Access.GRADIENTS
    goals = ("untargeted",)
    cite = "arXiv:1910.09338"
    summary = "Projected gradient ascent on the margin to each other class."
    coordinates = True

    steps: int = 40
    rate: float = 0.1
    """Step size, in radii."""

    def restart_count(self, classes: int) -> int:
        """One for each other class."""
        return classes - 1

    def start(self, problem: Problem) -> Tensor:
        """Random points of the set [n, ...]."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step towards the target class, projected onto the set; [n, ...]."""
        loss = margin_to(select_column(problem.other_classes, problem.restart))
        gradient = problem.gradient(adv, loss).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with 40 steps for each target class."""
    yield MarginPGD()

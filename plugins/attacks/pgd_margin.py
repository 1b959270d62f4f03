"""All-targets PGD: climb the difference of two logits, one rival class after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin_to, select_column


@dataclass(frozen=True)
class MarginPGD:
    """PGD on z_rival - z_label; run r takes the r-th likeliest rival (arXiv:1910.09338).

    The gradient of a difference of logits does not vanish where the softmax is saturated.
    """

    name = "pgd-margin"
    needs = Access.GRADIENTS
    goals = ("untargeted",)
    cite = "arXiv:1910.09338"
    summary = "Projected gradient ascent on the margin to each rival class."

    steps: int = 40
    rate: float = 0.1
    """Step length, in radii."""

    def restart_count(self, classes: int) -> int:
        """One for each rival."""
        return classes - 1

    def start(self, problem: Problem) -> Tensor:
        """A random point of the set."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step towards the rival, back into the ball."""
        loss = margin_to(select_column(problem.rivals, problem.restart))
        uphill = problem.gradient(adv, loss).gradient
        return problem.ball.ascend(adv, uphill, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Forty steps a rival."""
    yield MarginPGD()

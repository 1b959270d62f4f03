"""PGD: climb the loss from a random start, fall back into the ball."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class PGD:
    """x_{t+1} = Proj(x_t + alpha steepest(g_t)), x_0 uniform in the ball (arXiv:1706.06083)."""

    name = "pgd"
    needs = Access.GRADIENTS
    cite = "arXiv:1706.06083"
    summary = "Projected gradient ascent on the cross-entropy."

    steps: int = 40
    rate: float = 0.1
    """Step length, in radii; steps times rate under 2 cannot cross the ball."""
    restarts: int = 1
    random_start: bool = True

    def restart_count(self, classes: int) -> int:
        """Each restart is a run."""
        return self.restarts

    def start(self, problem: Problem) -> Tensor:
        """A random point of the set, or the clean image."""
        return problem.ball.sample(problem.x, problem) if self.random_start else problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step uphill, back into the ball."""
        uphill = problem.gradient(adv, cross_entropy).gradient
        return problem.ball.ascend(adv, uphill, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Forty steps, four radii in all."""
    yield PGD()

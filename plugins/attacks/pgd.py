"""PGD: projected gradient ascent from a random start (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent from a uniform random point of the ball.

    x_{t+1} = Proj(x_t + alpha steepest(g_t)) (Madry et al. 2018, arXiv:1706.06083).
    """

    name = "pgd"
    needs = Access.GRADIENTS
    cite = "arXiv:1706.06083"
    summary = "Projected gradient ascent on the cross-entropy."
    coordinates = True

    steps: int = 40
    rate: float = 0.1
    """Step size, in radii; with steps times rate below 2 an iterate cannot cross the ball."""
    restarts: int = 1
    random_start: bool = True

    def restart_count(self, classes: int) -> int:
        """The number of restarts."""
        return self.restarts

    def start(self, problem: Problem) -> Tensor:
        """Random points of the set [n, ...], or those of the clean images."""
        ball = problem.ball
        return ball.sample(problem.x, problem) if self.random_start else ball.start(problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent, projected onto the set; [n, ...]."""
        gradient = problem.gradient(adv, cross_entropy).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register PGD with 40 steps of 0.1 eps each."""
    yield PGD()

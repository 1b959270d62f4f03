"""BIM: the fast gradient step in small portions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class BIM:
    """x_{t+1} = Proj(x_t + alpha steepest(g_t)), from the clean image (arXiv:1607.02533)."""

    name = "bim"
    needs = Access.GRADIENTS
    cite = "arXiv:1607.02533"
    summary = "Iterated fast gradient steps from the clean image."

    steps: int = 10
    rate: float = 0.2
    """Step length, in radii of the ball."""

    def start(self, problem: Problem) -> Tensor:
        """The clean image."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step uphill, back into the ball."""
        uphill = problem.gradient(adv, cross_entropy).gradient
        return problem.ball.ascend(adv, uphill, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Ten steps of a fifth."""
    yield BIM()

"""BIM: iterated fast gradient steps from the clean image.

Kurakin et al. 2016, arXiv:1607.02533.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class BIM:
    """BIM: x_{t+1} = Proj(x_t + alpha steepest(g_t)), from the clean image (arXiv:1607.02533)."""

    name = "bim"
    needs = Access.GRADIENTS
    cite = "arXiv:1607.02533"
    summary = "Iterated fast gradient steps from the clean image."
    coordinates = True

    steps: int = 10
    rate: float = 0.2
    """Step size, in radii of the ball."""

    def start(self, problem: Problem) -> Tensor:
        """The points [n, ...] of the clean images."""
        return problem.ball.start(problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent, projected onto the set; [n, ...]."""
        gradient = problem.gradient(adv, cross_entropy).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register BIM with ten steps of 0.2 eps each."""
    yield BIM()

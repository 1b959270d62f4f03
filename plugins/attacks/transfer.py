"""Transfer attack: PGD on the surrogate model (Papernot et al. 2016, arXiv:1605.07277)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class Transfer:
    """PGD that queries the surrogate model and never the defense (arXiv:1605.07277).

    It makes every step, also after success on the surrogate, since confident images transfer
    better.
    """

    name = "transfer"
    needs = Access.GRADIENTS
    source = "surrogate"
    cite = "arXiv:1605.07277"
    summary = "PGD on the surrogate model; the defense is evaluated on the last iterate only."

    steps: int = 40
    rate: float = 0.1
    """Step size, in radii."""

    def start(self, problem: Problem) -> Tensor:
        """Random points of the set [n, C, H, W]."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent on the surrogate, projected onto the set; [n, C, H, W]."""
        gradient = problem.gradient(adv, cross_entropy).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with the steps and the step size of PGD."""
    yield Transfer()

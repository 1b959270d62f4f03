"""Transfer: fool the undefended surrogate, bring the image to the defense and hope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class Transfer:
    """PGD that asks the defense's surrogate and never the defense (arXiv:1605.07277).

    Every step is made, also past success on the surrogate: confidence there is what carries over.
    """

    name = "transfer"
    needs = Access.GRADIENTS
    source = "surrogate"
    cite = "arXiv:1605.07277"
    summary = "PGD against the undefended surrogate; the defense sees the last image only."

    steps: int = 40
    rate: float = 0.1
    """Step length, in radii."""

    def start(self, problem: Problem) -> Tensor:
        """A random point of the set."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step uphill on the surrogate, back into the ball."""
        uphill = problem.gradient(adv, cross_entropy).gradient
        return problem.ball.ascend(adv, uphill, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """With PGD's steps and rate."""
    yield Transfer()

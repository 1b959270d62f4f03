"""PGD without the sign: what the gradient's own direction is worth in a ball that is no sphere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import L2, Access, Attack, Fraction, Problem, cross_entropy, hookimpl, per_image


@dataclass(frozen=True)
class UnsignedPGD:
    """x_{t+1} = Proj(x_t + alpha s g_t / ||g_t||_2), else PGD (arXiv:1706.06083).

    s is the L2 length of the set's own steepest step (sqrt(d) in Linf, 1 in L1), so that a column
    beside PGD answers why the sign is taken. In L2 the two are one attack.
    """

    name = "pgd-l2step"
    needs = Access.GRADIENTS
    norms = ("Linf", "L1")
    cite = "arXiv:1706.06083"
    summary = "PGD along the normalised gradient instead of its sign."

    steps: int = 40
    rate: float = 0.1
    """Step length, in lengths of the steepest step."""

    def start(self, problem: Problem) -> Tensor:
        """A random point of the set."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step along the gradient, back into the ball."""
        ball, sphere = problem.ball, L2(Fraction(1))
        gradient = problem.gradient(adv, cross_entropy).gradient
        length = ball.steepest(gradient, adv).flatten(1).norm(dim=1)
        uphill = per_image(length) * sphere.steepest(gradient, adv)
        return ball.project(adv + self.rate * ball.radius * uphill, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """With PGD's steps and rate."""
    yield UnsignedPGD()

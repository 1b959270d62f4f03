"""PGD with normalised L2 gradient steps in place of signed or sparse ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import L2, Access, Attack, Fraction, Problem, cross_entropy, hookimpl, per_row


@dataclass(frozen=True)
class UnsignedPGD:
    """PGD with x_{t+1} = Proj(x_t + alpha s g_t / ||g_t||_2), to compare with signed steps.

    s is the L2 length of the set's steepest step (sqrt(d) in Linf, 1 in L1), so both attacks make
    steps of the same length. In L2 the attack is PGD (Madry et al. 2018, arXiv:1706.06083).
    """

    name = "pgd-l2step"
    needs = Access.GRADIENTS
    norms = ("Linf", "L1")
    cite = "arXiv:1706.06083"
    summary = "PGD along the normalised gradient instead of its sign."

    steps: int = 40
    rate: float = 0.1
    """Step size, in lengths of the steepest step."""

    def start(self, problem: Problem) -> Tensor:
        """Random points of the set [n, C, H, W]."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step along the gradient, projected onto the set; [n, C, H, W]."""
        ball, sphere = problem.ball, L2(Fraction(1))
        gradient = problem.gradient(adv, cross_entropy).gradient
        length = ball.steepest(gradient, adv).flatten(1).norm(dim=1)
        direction = per_row(length) * sphere.steepest(gradient, adv)
        return ball.project(adv + self.rate * ball.radius * direction, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with the steps and the step size of PGD."""
    yield UnsignedPGD()

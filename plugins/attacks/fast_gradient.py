"""FGSM and the fast gradient methods in L2 and L1: one step that maximises the linearised loss.

Goodfellow et al. 2015, arXiv:1412.6572.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class FastGradient:
    """One step of the full radius in the steepest direction (arXiv:1412.6572).

    Linf: eps sign(g). L2: eps g / ||g||_2. L1: eps on the one pixel where |g| is largest. Under a
    targeted threat model `problem.gradient` points towards the declared target.
    """

    name: str
    norms: tuple[str, ...]
    summary: str
    fill: bool = False
    """Where the box cuts the step short, the rest of the budget goes to the next best pixels."""

    needs = Access.GRADIENTS
    steps = 1
    cite = "arXiv:1412.6572"

    def start(self, problem: Problem) -> Tensor:
        """The clean images [n, C, H, W]."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """The end of the step [n, C, H, W]."""
        ball, x = problem.ball, problem.x
        gradient = problem.gradient(adv, cross_entropy).gradient
        if self.fill:
            return ball.farthest(gradient, x)
        return ball.ascend(x, gradient, 1, x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the step in each norm, and the L1 form that spends the whole budget."""
    yield FastGradient("fgsm", ("Linf",), "One signed gradient step.")
    yield FastGradient("fgm-l2", ("L2",), "One normalised gradient step.")
    yield FastGradient(
        "fgm-l1", ("L1",), "One gradient step on the single pixel with the largest gradient."
    )
    yield FastGradient(
        "fgm-l1-filled",
        ("L1",),
        "One gradient step on the pixels with the largest gradients, until the budget is spent.",
        True,
    )

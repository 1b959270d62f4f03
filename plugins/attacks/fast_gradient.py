"""Fast gradient attacks: the best step for the loss made linear, in each norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class FastGradient:
    """One step of the whole radius along the steepest direction (arXiv:1412.6572).

    Linf: eps sign(g). L2: eps g / ||g||_2. L1: eps on the one pixel where |g| is largest. On a
    targeted board the harness turns the gradient towards the declared target.
    """

    name: str
    norms: tuple[str, ...]
    summary: str
    fill: bool = False
    """Where the box cuts the step short, spend what is left on the next best pixels."""

    needs = Access.GRADIENTS
    steps = 1
    cite = "arXiv:1412.6572"

    def start(self, problem: Problem) -> Tensor:
        """The clean image."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """The end of the step."""
        ball, x = problem.ball, problem.x
        uphill = problem.gradient(adv, cross_entropy).gradient
        if self.fill:
            return ball.farthest(uphill, x)
        return ball.ascend(x, uphill, 1, x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """One for each norm, and the one that wastes nothing."""
    yield FastGradient("fgsm", ("Linf",), "One signed gradient step.")
    yield FastGradient("fgm-l2", ("L2",), "One normalised gradient step.")
    yield FastGradient("fgm-l1", ("L1",), "One pixel, as far as it goes.")
    yield FastGradient(
        "fgm-l1-filled", ("L1",), "The best pixels, until the budget is spent.", True
    )

"""Targeted FGSM: one signed step towards each other class in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl, select_column


@dataclass(frozen=True)
class TargetedFGSM:
    """x - eps sign(grad CE(x, rival)), run r towards the r-th likeliest rival (arXiv:1611.01236).

    On a board that declares the target, plain FGSM is this attack.
    """

    name = "fgsm-targeted"
    needs = Access.GRADIENTS
    norms = ("Linf",)
    goals = ("untargeted",)
    steps = 1
    cite = "arXiv:1611.01236"
    summary = "One signed gradient step towards each rival class."

    def restart_count(self, classes: int) -> int:
        """One for each rival."""
        return classes - 1

    def start(self, problem: Problem) -> Tensor:
        """The clean image."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """The end of the step."""
        rival = select_column(problem.rivals, problem.restart)
        towards = problem.gradient(adv, lambda logits, _: -cross_entropy(logits, rival)).gradient
        return problem.ball.ascend(problem.x, towards, 1, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """With the paper's single step."""
    yield TargetedFGSM()

"""Targeted FGSM: one signed step towards each other class.

Kurakin et al. 2017, arXiv:1611.01236.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl, select_column


@dataclass(frozen=True)
class TargetedFGSM:
    """FGSM towards each other class in turn: x - eps sign(grad CE(x, target)).

    Restart r takes the r-th most likely other class. Under a threat model that declares the target,
    FGSM is this attack (arXiv:1611.01236).
    """

    name = "fgsm-targeted"
    needs = Access.GRADIENTS
    norms = ("Linf",)
    goals = ("untargeted",)
    steps = 1
    cite = "arXiv:1611.01236"
    summary = "One signed gradient step towards each other class."

    def restart_count(self, classes: int) -> int:
        """One for each other class."""
        return classes - 1

    def start(self, problem: Problem) -> Tensor:
        """The clean images [n, C, H, W]."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """The end of the step [n, C, H, W]."""
        target = select_column(problem.other_classes, problem.restart)
        gradient = problem.gradient(adv, lambda logits, _: -cross_entropy(logits, target)).gradient
        return problem.ball.ascend(problem.x, gradient, 1, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with the paper's single step."""
    yield TargetedFGSM()

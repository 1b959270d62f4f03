"""FGSM with the predicted label in place of the true one.

Kurakin et al. 2017, arXiv:1611.01236.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class PredictedFGSM:
    """FGSM on the cross-entropy of the class that is predicted for the clean image.

    It never uses the true label, which FGSM leaks to a model that was trained on it: such a model
    is more accurate under FGSM than on clean images (arXiv:1611.01236). Where the prediction is
    right both are the same.
    """

    name = "fgsm-predicted"
    needs = Access.GRADIENTS
    norms = ("Linf",)
    goals = ("untargeted",)
    steps = 1
    cite = "arXiv:1611.01236"
    summary = "One signed gradient step away from the predicted class."

    def start(self, problem: Problem) -> Tensor:
        """The clean images [n, C, H, W]."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """The end of the step [n, C, H, W]."""
        predicted = problem.clean_logits.argmax(1)
        gradient = problem.gradient(adv, lambda logits, _: cross_entropy(logits, predicted))
        return problem.ball.ascend(problem.x, gradient.gradient, 1, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with the paper's single step."""
    yield PredictedFGSM()

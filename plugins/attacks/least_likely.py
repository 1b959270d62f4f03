"""Steps towards the least likely class: step-ll and its iterated form.

Kurakin et al. 2017, arXiv:1611.01236.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl


@dataclass(frozen=True)
class LeastLikely:
    """x_{t+1} = Proj(x_t - alpha steepest(grad CE(x_t, argmin_j z_j(x)))), from the clean image.

    The true label is not used, so that no label leaks into the perturbation (arXiv:1611.01236).
    Any wrong class counts as a success.
    """

    name: str
    summary: str
    steps: int
    rate: float
    """Step size, in radii."""

    needs = Access.GRADIENTS
    goals = ("untargeted",)
    cite = "arXiv:1611.01236"

    def start(self, problem: Problem) -> Tensor:
        """The clean images [n, C, H, W]."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step towards the least likely class, projected onto the set; [n, C, H, W]."""
        target = problem.clean_logits.argmin(1)
        gradient = problem.gradient(adv, lambda logits, _: -cross_entropy(logits, target)).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the single step of the radius, and ten steps of a fifth of it."""
    yield LeastLikely("step-ll", "One gradient step towards the least likely class.", 1, 1.0)
    yield LeastLikely("iterative-ll", "Ten gradient steps towards the least likely class.", 10, 0.2)

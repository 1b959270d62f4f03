"""PGD on the cross-entropy of logits that are shifted and scaled to a fixed spread.

Scaled logits hide the gradient of the cross-entropy: Carlini and Wagner 2017, arXiv:1608.04644.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl

SPREAD = 10.0
"""Largest rescaled logit above their mean; typical of a trained network."""


@dataclass(frozen=True)
class RescaledPGD:
    """PGD whose loss is the cross-entropy of (z - max z) / s, with s of each example.

    s makes the largest logit lie SPREAD above the mean, and no derivative is taken of it. So a
    softmax that is saturated, a temperature (arXiv:1608.04644) and a large factor or constant do
    not hide the gradient. It is computed in float64, and its gradient is that of s times the loss,
    so that a small factor does not make it vanish.
    """

    name = "pgd-rescaled"
    needs = Access.GRADIENTS
    cite = "arXiv:1608.04644"
    summary = "Projected gradient ascent on the cross-entropy of rescaled logits."

    steps: int = 40
    rate: float = 0.1
    """Step size, in radii."""

    def start(self, problem: Problem) -> Tensor:
        """Random points of the set [n, C, H, W]."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent, projected onto the set; [n, C, H, W]."""
        gradient = problem.gradient(adv, rescaled_cross_entropy).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


def rescaled_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """s times the cross-entropy [n] of (z - max z) / s, from logits z [n, K] and labels [n].

    s = (max z - mean z) / SPREAD is a constant for the gradient; where all logits are equal it
    does not matter.
    """
    wide = logits.double()
    known = wide.detach()
    top = known.amax(1, keepdim=True)
    scale = ((top - known.mean(1, keepdim=True)) / SPREAD).clamp_min(torch.finfo(wide.dtype).tiny)
    return (scale[:, 0] * cross_entropy((wide - top) / scale, label)).to(logits.dtype)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with the steps and the step size of PGD."""
    yield RescaledPGD()

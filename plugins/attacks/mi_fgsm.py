"""MI-FGSM: BIM with a memory of where the gradients pointed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl, per_image


class State(NamedTuple):
    """Where the climb stands."""

    adv: Tensor
    """[n, C, H, W]."""
    momentum: Tensor
    """[n, C, H, W]: the decayed sum of the gradients, each of length 1 in L1."""


@dataclass(frozen=True)
class MomentumFGSM:
    """m_{t+1} = mu m_t + g_t / |g_t|_1, then a step of eps / steps along m (arXiv:1710.06081)."""

    name = "mi-fgsm"
    needs = Access.GRADIENTS
    cite = "arXiv:1710.06081"
    summary = "Iterated fast gradient steps along a running sum of the gradients."

    steps: int = 10
    mu: float = 1.0
    """How much of the memory a step keeps; 0 is BIM."""

    def start(self, problem: Problem) -> State:
        """The clean image, nothing remembered."""
        return State(problem.x, torch.zeros_like(problem.x))

    def step(self, problem: Problem, state: State) -> State:
        """Add the gradient to the memory and follow that."""
        gradient = problem.gradient(state.adv, cross_entropy).gradient
        momentum = self.mu * state.momentum + l1_normalized(gradient)
        adv = problem.ball.ascend(state.adv, momentum, 1 / self.steps, problem.x)
        return State(adv, momentum)


def l1_normalized(gradient: Tensor) -> Tensor:
    """[n, C, H, W]: g / |g|_1; zero where there is no slope."""
    length = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / per_image(length)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Ten steps of a tenth that forget nothing."""
    yield MomentumFGSM()

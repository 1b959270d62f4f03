"""MI-FGSM: iterated fast gradient steps with momentum (Dong et al. 2018, arXiv:1710.06081)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl, per_row


class State(NamedTuple):
    """State of MI-FGSM."""

    adv: Tensor
    """[n, ...]: the iterate, a point of the set."""
    momentum: Tensor
    """[n, ...]: the decayed sum of the gradients, each normalised to L1 norm 1."""


@dataclass(frozen=True)
class MomentumFGSM:
    """FGSM with momentum: m_{t+1} = mu m_t + g_t / |g_t|_1, then a step of eps / steps along m.

    Dong et al. 2018, arXiv:1710.06081.
    """

    name = "mi-fgsm"
    needs = Access.GRADIENTS
    cite = "arXiv:1710.06081"
    summary = "Iterated fast gradient steps along the accumulated gradient."
    coordinates = True

    steps: int = 10
    mu: float = 1.0
    """Decay of the momentum; 0 is BIM."""

    def start(self, problem: Problem) -> State:
        """The clean image and zero momentum."""
        start = problem.ball.start(problem.x)
        return State(start, torch.zeros_like(start))

    def step(self, problem: Problem, state: State) -> State:
        """Add the gradient to the momentum and step along it."""
        gradient = problem.gradient(state.adv, cross_entropy).gradient
        momentum = self.mu * state.momentum + l1_normalized(gradient)
        adv = problem.ball.ascend(state.adv, momentum, 1 / self.steps, problem.x)
        return State(adv, momentum)


def l1_normalized(gradient: Tensor) -> Tensor:
    """The gradient divided by its L1 norm, [n, ...]; zero where it is zero."""
    length = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / per_row(length, gradient)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register MI-FGSM with ten steps of eps / 10 and no decay."""
    yield MomentumFGSM()

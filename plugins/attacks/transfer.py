"""Transfer attacks: gradients of a surrogate model, judged on the defense (arXiv:1605.07277)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, cross_entropy, hookimpl, margin, per_row


@dataclass(frozen=True)
class Transfer:
    """PGD that queries the surrogate model and never the defense (arXiv:1605.07277).

    It makes every step, also after success on the surrogate, since confident images transfer
    better.
    """

    name = "transfer"
    needs = Access.GRADIENTS
    source = "surrogate"
    cite = "arXiv:1605.07277"
    summary = "PGD on the surrogate model; the defense is evaluated on the last iterate only."

    steps: int = 40
    rate: float = 0.1
    """Step size, in radii."""

    def start(self, problem: Problem) -> Tensor:
        """Random points of the set [n, C, H, W]."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent on the surrogate, projected onto the set; [n, C, H, W]."""
        gradient = problem.gradient(adv, cross_entropy).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


class State(NamedTuple):
    """State of a transfer attack with momentum."""

    adv: Tensor
    """[n, C, H, W]: the iterate."""
    momentum: Tensor
    """[n, C, H, W]: the decayed sum of the normalised gradients."""


@dataclass(frozen=True)
class TransferBank:
    """Several adversarial examples for each image, made on one surrogate (arXiv:1710.06081).

    Restarts alternate between cross-entropy and margin loss, and between no momentum and momentum
    1, with step sizes that fall from one pair of restarts to the next. The surrogate is named by
    its role, which no author of a defense can choose.
    """

    needs = Access.GRADIENTS
    cite = "arXiv:1710.06081"

    name: str
    source: str
    """Role of the surrogate, as the protocol names it."""
    restarts: int = 2
    steps: int = 40
    rate: float = 0.1
    """Step size of the first restarts, in radii."""

    @property
    def summary(self) -> str:
        """One sentence for lists."""
        return f"{self.restarts} adversarial examples made on the {self.source} surrogate model."

    def restart_count(self, classes: int) -> int:
        """The number of adversarial examples for each image."""
        return self.restarts

    def start(self, problem: Problem) -> State:
        """Random points of the set and zero momentum."""
        adv = problem.ball.sample(problem.x, problem)
        return State(adv, torch.zeros_like(adv))

    def step(self, problem: Problem, state: State) -> State:
        """One step of ascent on the surrogate, with the options of each row's restart."""
        by_margin = problem.restart % 2 == 1

        def loss(logits: Tensor, label: Tensor) -> Tensor:
            return torch.where(by_margin, margin(logits, label), cross_entropy(logits, label))

        gradient = problem.gradient(state.adv, loss).gradient
        length = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        decay = (problem.restart // 2 % 2).to(gradient.dtype)
        momentum = per_row(decay, gradient) * state.momentum + gradient / per_row(length, gradient)
        rate = self.rate / 2.0 ** (problem.restart // 4).to(gradient.dtype)
        return State(problem.ball.ascend(state.adv, momentum, rate, problem.x), momentum)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register PGD on the declared surrogate, and the banks of each role of a protocol."""
    yield Transfer()
    for role in ("standard", "robust"):
        yield TransferBank(f"transfer-{role}", role, steps=25)
    yield TransferBank("transfer-learned", "learned", restarts=1, steps=25)
    yield TransferBank("bank-standard", "standard", restarts=8)
    yield TransferBank("bank-robust", "robust", restarts=8)
    yield TransferBank("transfer-learned-strong", "learned-strong", restarts=4)

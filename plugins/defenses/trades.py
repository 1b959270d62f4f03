"""TRADES: trains for correct clean predictions and for equal ones in the ball around an image.

Zhang et al. 2019, arXiv:1901.08573.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from bench.plugin import (
    Access,
    Attack,
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Problem,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
)
from plugins.defenses._cnn import cnn, trained

BETA = 3.0


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) [n] between the softmax of two matrices of logits [n, K]."""
    log_p, log_q = clean.log_softmax(1), other.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def trades_loss(batch: TrainingBatch, beta: float) -> Tensor:
    """The TRADES loss -log p(y | x) + beta KL(p(x) || p(x')) [n]."""
    clean = batch.model(batch.x)
    adv = batch.model(batch.adv)
    return cross_entropy(clean, batch.y) + beta * kl_divergence(clean, adv)


@dataclass(frozen=True)
class KLPGD:
    """PGD on KL(p(x) || p(x')), away from the clean prediction and without the label."""

    name = "pgd-kl"
    needs = Access.GRADIENTS
    cite = "arXiv:1901.08573"
    summary = "PGD on the divergence from the clean prediction, the inner attack of TRADES."
    goals = ("untargeted",)

    steps: int = 40
    rate: float = 0.1
    """Step size, in radii of the ball."""
    noise: float = 1e-3
    """Standard deviation of the start; at x itself the divergence has no gradient."""

    def start(self, problem: Problem) -> Tensor:
        """The clean image plus noise N(0, 1), projected onto the set; [n, C, H, W]."""
        normal = problem.normal("start", tuple(problem.x.shape[1:]))
        return problem.ball.project(problem.x + self.noise * normal, problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent on the divergence, projected onto the set; [n, C, H, W]."""
        clean = problem.clean_logits
        gradient = problem.gradient(
            adv, lambda logits, label: kl_divergence(clean, logits)
        ).gradient
        return problem.ball.ascend(adv, gradient, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the inner attack, which recipes name and runs may use as well."""
    yield KLPGD()


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained by TRADES."""
    inner = InnerAttack("pgd-kl", Linf(Fraction(51, 255)), {"steps": 7, "rate": 2.5 / 7})
    yield Defense(
        name="trades",
        cite="arXiv:1901.08573",
        summary=f"Trained for clean accuracy and equal predictions in the ball, beta = {BETA:g}.",
        recipe=Recipe(
            cnn,
            partial(trades_loss, beta=BETA),
            inner,
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"beta": BETA},
        ),
        build=trained,
    )

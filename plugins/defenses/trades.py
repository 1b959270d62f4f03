"""TRADES: be right on x, and answer alike on the whole ball around it. Zhang et al. 2019."""

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
    """KL(p || q) [n] of the softmax of two matrices of logits [n, K]."""
    log_p, log_q = clean.log_softmax(1), other.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def trades_loss(batch: TrainingBatch, beta: float) -> Tensor:
    """-log p(y | x) + beta KL(p(x) || p(x'))."""
    clean = batch.model(batch.x)
    moved = batch.model(batch.adv)
    return cross_entropy(clean, batch.y) + beta * kl_divergence(clean, moved)


@dataclass(frozen=True)
class KLPGD:
    """Projected ascent on KL(p(x) || p(x')): away from the clean answer, whatever the label."""

    name = "pgd-kl"
    needs = Access.GRADIENTS
    cite = "arXiv:1901.08573"
    summary = "PGD on the divergence from the clean answer, the inner attack of TRADES."
    goals = ("untargeted",)

    steps: int = 40
    rate: float = 0.1
    """Step length, in radii of the ball."""
    noise: float = 1e-3
    """Standard deviation of the start: at x itself the divergence has no slope."""

    def start(self, problem: Problem) -> Tensor:
        """x + noise N(0, 1)."""
        normal = problem.normal("start", tuple(problem.x.shape[1:]))
        return problem.ball.project(problem.x + self.noise * normal, problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Up the divergence, back into the ball."""
        clean = problem.clean_logits
        uphill = problem.gradient(adv, lambda logits, label: kl_divergence(clean, logits)).gradient
        return problem.ball.ascend(adv, uphill, self.rate, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Offer the inner attack: training finds it by name, and it may play on boards as well."""
    yield KLPGD()


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the network trained by TRADES."""
    inner = InnerAttack("pgd-kl", Linf(Fraction(51, 255)), {"steps": 7, "rate": 2.5 / 7})
    yield Defense(
        name="trades",
        cite="arXiv:1901.08573",
        summary=f"Right on clean images and steady around them, beta = {BETA:g}.",
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

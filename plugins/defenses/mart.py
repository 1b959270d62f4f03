"""MART: adversarial training with more weight on misclassified images.

Wang et al. 2020, https://openreview.net/forum?id=rklOg6EFwS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from bench.plugin import (
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
    select_column,
)
from plugins.defenses._cnn import cnn, trained
from plugins.defenses.trades import kl_divergence

STRENGTH = 5.0


def boosted_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Boosted cross-entropy -log p_label - log(1 - max_{k != label} p_k) [n] of logits [n, K]."""
    own = label[:, None]
    rival = logits.scatter(1, own, -math.inf).argmax(1, keepdim=True)
    rest = logits.scatter(1, rival, -math.inf).logsumexp(1) - logits.logsumexp(1)
    return cross_entropy(logits, label) - rest


def mart_loss(batch: TrainingBatch, strength: float) -> Tensor:
    """The MART loss BCE(x', y) + strength KL(p(x) || p(x')) (1 - p_y(x)) [n]."""
    clean, adv = batch.model(batch.x), batch.model(batch.adv)
    weight = 1 - select_column(clean.softmax(1), batch.y)
    return boosted_cross_entropy(adv, batch.y) + strength * kl_divergence(clean, adv) * weight


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained by MART."""
    yield Defense(
        name="mart",
        cite="https://openreview.net/forum?id=rklOg6EFwS",
        summary=f"PGD training with more weight on misclassified images, lambda = {STRENGTH:g}.",
        recipe=Recipe(
            cnn,
            partial(mart_loss, strength=STRENGTH),
            InnerAttack("pgd", Linf(Fraction(51, 255)), {"steps": 10, "rate": 0.25}),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"strength": STRENGTH},
        ),
        build=trained,
        quick=False,
    )

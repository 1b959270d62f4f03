"""Cascade adversarial training: also trains on images that fool an earlier trained network.

Na et al. 2018, arXiv:1708.02582.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.plugin import (
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
    require_type,
)
from plugins.defenses._cnn import cnn, trained

BALL = Linf(Fraction(51, 255))
ALPHA = 0.5
PIVOT = 1e-4


def cascade_loss(batch: TrainingBatch, alpha: float, pivot: float) -> Tensor:
    """Clean and adversarial cross-entropy and the distance of both embeddings, [n].

    alpha J(x) + (1 - alpha) J(x') + pivot ||e(x') - e(x)||^2, with e the input of the last layer.
    No gradient flows through e(x). With two kinds of x', those of the inner attack and those
    transferred from the teacher, the mean of both is taken.
    """
    network = require_type(batch.model, nn.Sequential, "the model")
    embed, head = network[:-1], network[-1]
    embedding = embed(batch.x)
    clean = cross_entropy(head(embedding), batch.y)
    kinds = [batch.adv] if batch.transferred is None else [batch.adv, batch.transferred]
    losses = []
    for adv in kinds:
        adv_embedding = embed(adv)
        distance = (adv_embedding - embedding.detach()).square().sum(1)
        losses.append((1 - alpha) * cross_entropy(head(adv_embedding), batch.y) + pivot * distance)
    return alpha * clean + torch.stack(losses).mean(0)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register both stages; the second also trains on BIM images made against the first."""
    common = partial(
        Recipe, cnn, partial(cascade_loss, alpha=ALPHA, pivot=PIVOT), InnerAttack("fgsm", BALL),
        epochs=30, rate=2e-3, schedule="cosine", options={"alpha": ALPHA, "pivot": PIVOT},
    )  # fmt: skip
    for name, recipe, summary in (
        ("cascade-first", common(), "Trained on clean and FGSM images with close embeddings."),
        (
            "cascade",
            common(teacher="cascade-first", transfer=InnerAttack("bim", BALL)),
            "As cascade-first, and also trained on BIM images made against cascade-first.",
        ),
    ):
        yield Defense(
            name=name,
            cite="arXiv:1708.02582",
            summary=summary,
            recipe=recipe,
            build=trained,
            quick=False,
        )

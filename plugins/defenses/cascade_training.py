"""Cascade training: learn from images that fooled a network trained alike. Na et al. 2018."""

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
    """alpha J(x) + (1 - alpha) J(x') + pivot ||e(x') - e(x)||^2, e before the last layer.

    e(x) is the pivot: no gradient flows there. Of two kinds of x' the mean is taken.
    """
    network = require_type(batch.model, nn.Sequential, "the model")
    embed, head = network[:-1], network[-1]
    fixed = embed(batch.x)
    clean = cross_entropy(head(fixed), batch.y)
    kinds = [batch.adv] if batch.transferred is None else [batch.adv, batch.transferred]
    losses = []
    for adv in kinds:
        moved = embed(adv)
        apart = (moved - fixed.detach()).square().sum(1)
        losses.append((1 - alpha) * cross_entropy(head(moved), batch.y) + pivot * apart)
    return alpha * clean + torch.stack(losses).mean(0)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer both stages: the second sees what iterated steps make against the first as well."""
    common = partial(
        Recipe, cnn, partial(cascade_loss, alpha=ALPHA, pivot=PIVOT), InnerAttack("fgsm", BALL),
        epochs=30, rate=2e-3, schedule="cosine", options={"alpha": ALPHA, "pivot": PIVOT},
    )  # fmt: skip
    for name, recipe, summary in (
        ("cascade-first", common(), "Images and their one-step ones, close to each other inside."),
        (
            "cascade",
            common(teacher="cascade-first", transfer=InnerAttack("bim", BALL)),
            "The same, and images that iterated steps made against cascade-first.",
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

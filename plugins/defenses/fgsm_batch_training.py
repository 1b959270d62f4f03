"""Adversarial training at scale: FGSM images in half of each batch, with a smaller weight.

Kurakin et al. 2017, arXiv:1611.01236.
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
    per_row,
)
from plugins.defenses._cnn import cnn, trained

BALL = Linf(Fraction(51, 255))
WEIGHT = 0.3
SHARE = 0.5


def weighted_loss(batch: TrainingBatch, weight: float, share: float, eps: float) -> Tensor:
    """Weighted mean of the losses J [m] of m - k clean images and k = share m adversarial ones.

    (sum over m - k clean J + weight sum over k adversarial J) / (m - k + weight k).
    """
    clean = len(batch.y) - int(share * len(batch.y))
    adv = random_length_step(batch.x[clean:], batch.adv[clean:], eps)
    images = torch.cat([batch.x[:clean], adv])
    weights = torch.ones_like(batch.y, dtype=images.dtype)
    weights[clean:] = weight
    return (weights * cross_entropy(batch.model(images), batch.y)).sum() / weights.sum()


def random_length_step(x: Tensor, adv: Tensor, eps: float) -> Tensor:
    """A signed step from x towards adv [n, C, H, W] of length eps |N(0, 1/4)|, at most eps."""
    share = nn.init.trunc_normal_(x.new_empty(len(x)), mean=0.0, std=0.5, a=0.0, b=1.0)
    return (x + per_row(share * eps) * (adv - x).sign()).clamp(0, 1)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained on such batches."""
    yield Defense(
        name="fgsm-batch",
        cite="arXiv:1611.01236",
        summary=f"Trained with FGSM of random length on half of each batch, weight {WEIGHT:g}.",
        recipe=Recipe(
            cnn,
            partial(weighted_loss, weight=WEIGHT, share=SHARE, eps=BALL.radius),
            InnerAttack("fgsm", BALL),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"weight": WEIGHT, "share": SHARE},
        ),
        build=trained,
        quick=False,
    )

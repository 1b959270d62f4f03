"""FGSM adversarial training: trains on one-step adversarial images.

Goodfellow et al. 2015, arXiv:1412.6572.
"""

from __future__ import annotations

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
)
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import adversarial_loss

INNER = InnerAttack("fgsm", Linf(Fraction(51, 255)))
ALPHA = 0.5


def mixture_loss(batch: TrainingBatch, alpha: float) -> Tensor:
    """The weighted sum alpha J(x) + (1 - alpha) J(x') [n]; alpha weights the clean images."""
    clean = cross_entropy(batch.model(batch.x), batch.y)
    return alpha * clean + (1 - alpha) * cross_entropy(batch.model(batch.adv), batch.y)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register training on adversarial images alone, and on half clean and half adversarial."""
    yield Defense(
        name="fgsm-training",
        cite="arXiv:1412.6572",
        summary="Trained on FGSM images alone; stronger attacks may break it.",
        recipe=Recipe(cnn, adversarial_loss, INNER, epochs=30, rate=2e-3, schedule="cosine"),
        build=trained,
    )
    yield Defense(
        name="fgsm-mixture",
        cite="arXiv:1412.6572",
        summary="Trained on clean and FGSM images in equal shares.",
        recipe=Recipe(
            cnn,
            partial(mixture_loss, alpha=ALPHA),
            INNER,
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"alpha": ALPHA},
        ),
        build=trained,
    )

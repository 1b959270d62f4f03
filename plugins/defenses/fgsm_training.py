"""FGSM adversarial training: learn from one-step adversarial images. Goodfellow et al. 2015."""

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
    """alpha J(x) + (1 - alpha) J(x'): alpha is the weight of the clean images."""
    clean = cross_entropy(batch.model(batch.x), batch.y)
    return alpha * clean + (1 - alpha) * cross_entropy(batch.model(batch.adv), batch.y)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer both forms: adversarial images alone, and half and half."""
    yield Defense(
        name="fgsm-training",
        cite="arXiv:1412.6572",
        summary="Trained on one-step adversarial images alone; stronger attacks may pass.",
        recipe=Recipe(cnn, adversarial_loss, INNER, epochs=30, rate=2e-3, schedule="cosine"),
        build=trained,
    )
    yield Defense(
        name="fgsm-mixture",
        cite="arXiv:1412.6572",
        summary="Trained on clean and one-step adversarial images, half and half.",
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

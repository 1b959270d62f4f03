"""Free adversarial training: one backward pass updates both weights and perturbations.

Shafahi et al. 2019, arXiv:1904.12843.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Defense, Fraction, FreeTraining, Linf, Recipe, hookimpl
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import adversarial_loss


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network that replays each batch eight times, as many gradients as PGD-7."""
    yield Defense(
        name="free-training",
        cite="arXiv:1904.12843",
        summary="Adversarial training that reuses the gradients of the weight updates.",
        recipe=Recipe(
            cnn,
            adversarial_loss,
            FreeTraining(Linf(Fraction(51, 255)), replays=8),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
        ),
        build=trained,
        quick=False,
    )

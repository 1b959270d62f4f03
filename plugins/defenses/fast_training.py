"""Fast is better than free: one signed step from a random start. Wong, Rice and Kolter 2020."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Defense, Fraction, InnerAttack, Linf, Recipe, hookimpl
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import adversarial_loss

BALL = Linf(Fraction(51, 255))
STEP = InnerAttack("pgd", BALL, {"steps": 1, "rate": 1.25, "random_start": True})
"""d ~ U(-eps, eps), then d = clip(d + 1.25 eps sign g). From zero with 1 eps it would be FGSM."""
WATCH = InnerAttack("pgd", BALL, {"steps": 5, "rate": 0.5})


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the network; training stops where PGD-5 suddenly breaks what it did not before."""
    yield Defense(
        name="fast-training",
        cite="arXiv:2001.03994",
        summary="Trained on one signed step from a random start, on a cyclic schedule.",
        recipe=Recipe(
            cnn, adversarial_loss, STEP, epochs=45, rate=4e-3, schedule="cyclic", monitor=WATCH
        ),
        build=trained,
        quick=False,
    )

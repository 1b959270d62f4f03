"""Fast adversarial training: one signed step from a random start.

Wong, Rice and Kolter 2020, arXiv:2001.03994.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Defense, Fraction, InnerAttack, Linf, Recipe, hookimpl
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import adversarial_loss

BALL = Linf(Fraction(51, 255))
STEP = InnerAttack("pgd", BALL, {"steps": 1, "rate": 1.25, "random_start": True})
"""d ~ U(-eps, eps), then d = clip(d + 1.25 eps sign g). From zero with step size eps it is FGSM."""
MONITOR = InnerAttack("pgd", BALL, {"steps": 5, "rate": 0.5})


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network; training stops where accuracy under PGD-5 collapses."""
    yield Defense(
        name="fast-training",
        cite="arXiv:2001.03994",
        summary="Adversarial training with one signed step from a random start, cyclic schedule.",
        recipe=Recipe(
            cnn, adversarial_loss, STEP, epochs=45, rate=4e-3, schedule="cyclic", monitor=MONITOR
        ),
        build=trained,
        quick=False,
    )

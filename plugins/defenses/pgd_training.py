"""PGD adversarial training: minimises the loss of the worst image in the ball.

Madry et al. 2018, arXiv:1706.06083.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import (
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Recipe,
    hookimpl,
)
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import adversarial_loss


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained on PGD images of 7 steps of 2.5 eps / 7."""
    inner = InnerAttack("pgd", Linf(Fraction(51, 255)), {"steps": 7, "rate": 2.5 / 7})
    yield Defense(
        name="pgd-training",
        cite="arXiv:1706.06083",
        summary="Trained on PGD images of each batch, L-infinity 51/255.",
        recipe=Recipe(cnn, adversarial_loss, inner, epochs=30, rate=2e-3, schedule="cosine"),
        build=trained,
    )

"""No defense at all: the network that every other row is compared with."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.plugin import Defense, Recipe, TrainingBatch, cross_entropy, hookimpl
from plugins.defenses._cnn import cnn, trained


def standard(lesson: TrainingBatch) -> Tensor:
    """-log p(y | x), on clean images."""
    return cross_entropy(lesson.model(lesson.x), lesson.y)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the plain network."""
    yield Defense(
        name="undefended",
        summary="A small convolutional network, trained on clean images.",
        recipe=Recipe(cnn, standard, epochs=20, rate=2e-3, schedule="cosine"),
        build=trained,
    )

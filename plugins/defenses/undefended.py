"""The undefended network, which other defenses are compared with and some are built on."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Defense, Recipe, hookimpl
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import clean_loss


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained on clean images."""
    yield Defense(
        name="undefended",
        summary="A small convolutional network, trained on clean images.",
        recipe=Recipe(cnn, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
        build=trained,
    )

"""Softmax regression: the model whose robustness is known exactly (certifier linear-exact)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from bench.plugin import Defense, Loader, Recipe, hookimpl
from plugins.defenses._losses import clean_loss


def regression(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """logits = W x + b."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def trained(loader: Loader) -> nn.Module:
    """The regression with its own weights."""
    return loader.trained(regression(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer softmax regression."""
    yield Defense(
        name="linear",
        summary="Softmax regression on clean images; its exact robust accuracy is certified.",
        recipe=Recipe(regression, clean_loss, epochs=40, rate=1e-2, schedule="cosine"),
        build=trained,
    )

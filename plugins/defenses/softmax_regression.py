"""Softmax regression: a linear model, whose exact robust accuracy can be certified."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from bench.plugin import Defense, Loader, Recipe, hookimpl
from plugins.defenses._losses import clean_loss


def regression(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One linear layer on the flattened image: logits = W x + b."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def trained(loader: Loader) -> nn.Module:
    """The model with its own weights."""
    return loader.trained(regression(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register softmax regression."""
    yield Defense(
        name="linear",
        summary="Softmax regression on clean images; its exact robust accuracy is certified.",
        recipe=Recipe(regression, clean_loss, epochs=40, rate=1e-2, schedule="cosine"),
        build=trained,
    )

"""Softmax regression: the model whose robustness is known exactly (certifier linear-exact)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from bench.plugin import Defense, Loader, Recipe, TrainingBatch, cross_entropy, hookimpl


def regression(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """logits = W x + b."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def trained(loader: Loader) -> nn.Module:
    """The regression with its own weights."""
    return loader.trained(regression(loader.shape, loader.classes))


def likelihood(lesson: TrainingBatch) -> Tensor:
    """-log p(y | x), on clean images."""
    return cross_entropy(lesson.model(lesson.x), lesson.y)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer softmax regression."""
    yield Defense(
        name="linear",
        summary="Softmax regression on clean images; its exact robust accuracy is certified.",
        recipe=Recipe(regression, likelihood, epochs=40, rate=1e-2, schedule="cosine"),
        build=trained,
    )

"""Softmax regression: the model whose robustness is known exactly (certifier linear-exact)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from bench.kit import cross_entropy
from bench.plugin import Defense, Lesson, Recipe, Shelf, hookimpl


def regression(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """logits = W x + b."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def trained(shelf: Shelf) -> nn.Module:
    """The regression with its own weights."""
    return shelf.trained(regression(shelf.shape, shelf.classes))


def likelihood(lesson: Lesson) -> Tensor:
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

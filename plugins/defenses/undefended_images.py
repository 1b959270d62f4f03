"""The undefended network of the image data sets."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from bench.plugin import Defense, Loader, Recipe, hookimpl
from plugins.defenses._dropout_cnn import dropout_cnn
from plugins.defenses._losses import clean_loss


def trained(loader: Loader) -> nn.Module:
    """The network with its own weights."""
    return loader.trained(dropout_cnn(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register a network that trains in minutes on a CPU."""
    yield Defense(
        name="undefended-images",
        datasets=("fashion-mnist", "mnist", "cifar10", "cifar100"),
        summary="A small convolutional network, trained on clean images.",
        recipe=Recipe(dropout_cnn, clean_loss, epochs=8, batch=128, rate=3e-3, schedule="cyclic"),
        build=trained,
        surrogate="undefended-images",
        quick=False,
    )

"""Dropout in training: a network trained with random units set to zero.

Hinton et al. 2012, arXiv:1207.0580.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from bench.plugin import Defense, Loader, Recipe, hookimpl
from plugins.defenses._dropout_cnn import dropout_cnn
from plugins.defenses._losses import clean_loss


def trained(loader: Loader) -> nn.Module:
    """The network with its own weights; in eval mode dropout is the identity."""
    return loader.trained(dropout_cnn(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network with dropout before both dense layers."""
    yield Defense(
        name="cnn-dropout",
        cite="arXiv:1207.0580",
        summary="A convolutional network with dropout of one half, trained on clean images.",
        recipe=Recipe(dropout_cnn, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
        build=trained,
        quick=False,
    )

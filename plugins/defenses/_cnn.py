"""The convolutional network of the digits defenses, which differ in their training only."""

from __future__ import annotations

from torch import nn

from bench.plugin import Loader


def cnn(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two convolutions of 32 and 64 channels, the second with stride 2, and 128 hidden units.

    Maps images [n, *shape] in [0, 1] to logits [n, classes].
    """
    channels, height, width = shape
    features = 64 * ((height + 1) // 2) * ((width + 1) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def trained(loader: Loader) -> nn.Module:
    """The network with the weights of the defense's own recipe."""
    return loader.trained(cnn(loader.shape, loader.classes))

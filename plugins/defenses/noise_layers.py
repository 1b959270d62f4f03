"""Gaussian noise inside the network, at one layer, in training and in play. Liu et al. 2018."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from bench.plugin import Defense, Loader, Randomness, Recipe, hookimpl
from plugins.defenses._cnn import cnn
from plugins.defenses._losses import clean_loss
from plugins.defenses._noise_layer import GaussianNoise

SIGMA = 0.05
PLACES = {"first": 1, "dense": 7}
"""Which layer of the network the noise becomes: after the first convolution, before the last."""

Model = Callable[[tuple[int, int, int], int], nn.Sequential]


def noisy_cnn(
    shape: tuple[int, int, int], classes: int, *, place: int, sigma: float
) -> nn.Sequential:
    """The network of the other digits defenses, with a layer of noise at `place`."""
    return cnn(shape, classes).insert(place, GaussianNoise(sigma))


def trained_builder(model: Model) -> Callable[[Loader], nn.Module]:
    """What builds the trained network."""
    return lambda loader: loader.trained(model(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer noise after the first convolution, and noise between the dense layers."""
    for where, place in PLACES.items():
        model = partial(noisy_cnn, place=place, sigma=SIGMA)
        yield Defense(
            name=f"noise-{where}",
            cite="arXiv:1712.00673",
            summary=f"Noise of deviation {SIGMA} at the {where} layer: too little to matter.",
            recipe=Recipe(model, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
            build=trained_builder(model),
            randomness=Randomness(draws=4),
            quick=False,
        )

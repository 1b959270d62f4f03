"""Gaussian noise at one layer of the network, in training and at test time.

Liu et al. 2018, arXiv:1712.00673.
"""

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
"""Index at which the noise layer is inserted: after the first convolution, or before the last
layer."""

Model = Callable[[tuple[int, int, int], int], nn.Sequential]
"""(shape, classes) -> network."""


def noisy_cnn(
    shape: tuple[int, int, int], classes: int, *, place: int, sigma: float
) -> nn.Sequential:
    """The network of the other digits defenses with a layer of noise at index `place`."""
    return cnn(shape, classes).insert(place, GaussianNoise(sigma))


def trained_builder(model: Model) -> Callable[[Loader], nn.Module]:
    """A build function for the trained network."""
    return lambda loader: loader.trained(model(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register noise after the first convolution, and noise between the dense layers."""
    for where, place in PLACES.items():
        model = partial(noisy_cnn, place=place, sigma=SIGMA)
        yield Defense(
            name=f"noise-{where}",
            cite="arXiv:1712.00673",
            summary=f"Gaussian noise of deviation {SIGMA} at the {where} layer, always active.",
            recipe=Recipe(model, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
            build=trained_builder(model),
            randomness=Randomness(draws=4),
            quick=False,
        )

"""Randomised adversarial training: PGD training and predictions with noise on the images.

Araujo et al. 2019, arXiv:1903.10219.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from bench.plugin import Defense, Fraction, InnerAttack, Linf, Loader, Randomness, Recipe, hookimpl
from plugins.defenses._cnn import cnn
from plugins.defenses._losses import adversarial_loss
from plugins.defenses._noise_layer import GaussianNoise

SIGMA = 0.25


def noisy_cnn(shape: tuple[int, int, int], classes: int, *, sigma: float) -> nn.Sequential:
    """Gaussian noise on the image, then the network of the other digits defenses."""
    return cnn(shape, classes).insert(0, GaussianNoise(sigma))


def build(loader: Loader) -> nn.Module:
    """The trained network with its noise."""
    return loader.trained(noisy_cnn(loader.shape, loader.classes, sigma=SIGMA))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network; the inner attack is PGD on the noisy network."""
    inner = InnerAttack("pgd", Linf(Fraction(51, 255)), {"steps": 7, "rate": 2.5 / 7})
    yield Defense(
        name="randomised-training",
        cite="arXiv:1903.10219",
        summary=f"PGD training with noise of deviation {SIGMA} on every image, also at test time.",
        recipe=Recipe(
            partial(noisy_cnn, sigma=SIGMA),
            adversarial_loss,
            inner,
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"sigma": SIGMA},
        ),
        build=build,
        randomness=Randomness(draws=10),
        quick=False,
    )

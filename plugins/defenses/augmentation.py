"""Data augmentation with shifts and noise, without adversarial training.

Krizhevsky et al. 2012, doi:10.1145/3065386.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.plugin import Defense, Recipe, hookimpl
from plugins.defenses._augmentations import add_gaussian_noise, random_shift
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import clean_loss

SIGMA = 0.1


def augment(images: Tensor) -> Tensor:
    """Images [n, C, H, W] shifted by up to one pixel, then with noise.

    They are not mirrored, since a mirrored digit is no digit.
    """
    return add_gaussian_noise(random_shift(images, 1), SIGMA)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the undefended network trained on augmented images."""
    yield Defense(
        name="augmented",
        cite="https://doi.org/10.1145/3065386",
        summary=f"Trained on clean images, shifted by a pixel, with Gaussian noise of {SIGMA:g}.",
        recipe=Recipe(
            cnn, clean_loss, epochs=30, rate=2e-3, schedule="cosine", augment=augment,
            options={"sigma": SIGMA},
        ),
        build=trained,
        quick=False,
    )  # fmt: skip

"""Data augmentation: more images of the same kind. It is no adversarial training."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.plugin import Defense, Recipe, hookimpl
from plugins.defenses._augmentations import add_gaussian_noise, random_shift
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import clean_loss

SIGMA = 0.1


def augment(images: Tensor) -> Tensor:
    """Moved by up to one pixel, then noisy; a mirrored digit would be another sign."""
    return add_gaussian_noise(random_shift(images, 1), SIGMA)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the plain network, taught on varied images."""
    yield Defense(
        name="augmented",
        cite="https://doi.org/10.1145/3065386",
        summary=f"Clean images, moved by a pixel and with Gaussian noise of {SIGMA:g}.",
        recipe=Recipe(
            cnn, clean_loss, epochs=30, rate=2e-3, schedule="cosine", augment=augment,
            options={"sigma": SIGMA},
        ),
        build=trained,
        quick=False,
    )  # fmt: skip

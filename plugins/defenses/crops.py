"""Cropping and rescaling: classifies enlarged crops of the image.

Guo et al. 2018, arXiv:1711.00117.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, hookimpl
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import clean_loss
from plugins.defenses._preprocessing import before_undefended
from plugins.defenses._resampling import crop_matrix, random_integer, resample

CROPS = 8


def crop_side(size: int) -> int:
    """Three quarters of a side of the image."""
    return size * 3 // 4


def center_crop(images: Tensor) -> Tensor:
    """The centre of each image [n, C, H, W], resized to the whole image."""
    margins = [
        torch.tensor([size - crop_side(size)], device=images.device) for size in images.shape[2:]
    ]
    return crop_and_resize(images, margins[0] // 2, margins[1] // 2)


def random_crop(images: Tensor) -> Tensor:
    """A crop of each image [n, C, H, W] at a new random place, resized to the image."""
    return crop_and_resize(
        images, *(random_integer(images, 0, size - crop_side(size)) for size in images.shape[2:])
    )


def crop_and_resize(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """The crop of each image [n, C, H, W] from row `top` [n] and column `left` [n], resized."""
    rows, columns = (
        crop_matrix(start, crop_side(size), size).to(images)
        for start, size in zip((top, left), images.shape[2:], strict=True)
    )
    return resample(images, rows, columns)


class CropEnsemble(nn.Module):
    """The log of the mean probability over several random crops."""

    def __init__(self, classifier: nn.Module, count: int) -> None:
        super().__init__()
        self.classifier, self.count = classifier, count

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        crops = torch.cat([random_crop(images) for _ in range(self.count)])
        each: Tensor = self.classifier(crops).log_softmax(1)
        return each.view(self.count, len(images), -1).logsumexp(0)


def ensemble(loader: Loader) -> nn.Module:
    """The network trained on crops, averaged over several."""
    return CropEnsemble(trained(loader), CROPS)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register one fixed crop in front of the undefended network, and the ensemble."""
    yield Defense(
        name="crop",
        cite="arXiv:1711.00117",
        summary="The enlarged centre of the image, then the undefended network.",
        build=before_undefended(center_crop),
        quick=False,
    )
    yield Defense(
        name="crop-ensemble",
        cite="arXiv:1711.00117",
        summary=f"The mean over {CROPS} random crops, by a network trained on crops.",
        # Rounding may leave [0, 1] by a little.
        recipe=Recipe(
            cnn,
            clean_loss,
            augment=lambda images: random_crop(images).clamp(0, 1),
            epochs=20,
            rate=2e-3,
            schedule="cosine",
        ),
        build=ensemble,
        # Each forward averages over many crops already.
        randomness=Randomness(draws=1),
        forwards=CROPS,
        quick=False,
    )

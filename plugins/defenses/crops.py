"""Cropping and rescaling: parts of the image, as large as the whole. Guo et al. 2018."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, hookimpl
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import clean_loss
from plugins.defenses._preprocessing import undefended_behind
from plugins.defenses._resampling import cropped, seen, whole

LOOKS = 8


def side(size: int) -> int:
    """Three quarters of a side of the image."""
    return size * 3 // 4


def middle(images: Tensor) -> Tensor:
    """The middle of each image, stretched over the whole of it."""
    spare = [torch.tensor([size - side(size)], device=images.device) for size in images.shape[2:]]
    return cut(images, spare[0] // 2, spare[1] // 2)


def somewhere(images: Tensor) -> Tensor:
    """Another part of each image, stretched over the whole of it; new places on each call."""
    return cut(images, *(whole(images, 0, size - side(size)) for size in images.shape[2:]))


def cut(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """The part of each image whose first row and column are `top` and `left`, stretched."""
    rows, columns = (
        cropped(start, side(size), size).to(images)
        for start, size in zip((top, left), images.shape[2:], strict=True)
    )
    return seen(images, rows, columns)


class CropEnsemble(nn.Module):
    """The log of the mean probability over several random crops."""

    def __init__(self, classifier: nn.Module, looks: int) -> None:
        super().__init__()
        self.classifier, self.looks = classifier, looks

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        looks = torch.cat([somewhere(images) for _ in range(self.looks)])
        each: Tensor = self.classifier(looks).log_softmax(1)
        return each.view(self.looks, len(images), -1).logsumexp(0)


def ensemble(loader: Loader) -> nn.Module:
    """The network that was trained on crops, asked about several."""
    return CropEnsemble(trained(loader), LOOKS)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer one fixed crop before the undefended network, and the ensemble of random ones."""
    yield Defense(
        name="crop",
        cite="arXiv:1711.00117",
        summary="The middle of the image, stretched, then the undefended network.",
        build=undefended_behind(middle),
        quick=False,
    )
    yield Defense(
        name="crop-ensemble",
        cite="arXiv:1711.00117",
        summary=f"The mean over {LOOKS} random crops, by a network trained on crops.",
        # A crop of an image is an image up to rounding.
        recipe=Recipe(
            cnn,
            clean_loss,
            augment=lambda images: somewhere(images).clamp(0, 1),
            epochs=20,
            rate=2e-3,
            schedule="cosine",
        ),
        build=ensemble,
        # Each answer is a mean over many crops already.
        randomness=Randomness(draws=1),
        forwards=LOOKS,
        quick=False,
    )

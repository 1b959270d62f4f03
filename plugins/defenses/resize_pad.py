"""Random resizing and padding of the image in front of the network.

Xie et al. 2018, arXiv:1711.01991.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, hookimpl
from plugins.defenses._cnn import cnn
from plugins.defenses._losses import clean_loss
from plugins.defenses._preprocessing import PreprocessedModel
from plugins.defenses._resampling import pad_matrix, random_integer, resample

GREY = 0.5


def random_resize_pad(images: Tensor, width: int) -> Tensor:
    """Square images [n, C, H, W], each resized and placed at random in a grey square of `width`.

    The size is drawn from that of the image up to `width`; an image of side `width` is unchanged.
    """
    size = images.shape[3]
    side = random_integer(images, size, width)
    rows, columns = (
        pad_matrix(random_integer(images, 0, width - side), side, size, width).to(images)
        for _ in range(2)
    )
    return resample(images - GREY, rows, columns) + GREY


def padded_size(size: int) -> int:
    """The side of the padded image, 5/4 of the image's.

    With 331 / 299 as published, images of 8 pixels could not move.
    """
    return size * 5 // 4


def resize_pad_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network on the padded images, behind the random map."""
    channels, size, _ = shape
    width = padded_size(size)
    return PreprocessedModel(
        cnn((channels, width, width), classes), partial(random_resize_pad, width=width)
    )


def build(loader: Loader) -> nn.Module:
    """The network trained behind the same random map."""
    return loader.trained(resize_pad_cnn(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register it without a BPDA approximation, since the map is linear for each draw."""
    yield Defense(
        name="resize-pad",
        cite="arXiv:1711.01991",
        summary="Resizes each image at random and places it at random in a grey frame.",
        recipe=Recipe(resize_pad_cnn, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
        build=build,
        randomness=Randomness(draws=10),
        quick=False,
    )

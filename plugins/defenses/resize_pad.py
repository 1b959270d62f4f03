"""Random resizing and padding: the image a little larger, somewhere in a frame. Xie et al. 2018."""

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
    """Square images, each at a size and a place of its own, in a grey square of `width` pixels.

    The size is drawn from that of the image up to `width`: an image as wide stays as it is.
    """
    size = images.shape[3]
    side = random_integer(images, size, width)
    rows, columns = (
        pad_matrix(random_integer(images, 0, width - side), side, size, width).to(images)
        for _ in range(2)
    )
    return resample(images - GREY, rows, columns) + GREY


def padded_size(size: int) -> int:
    """10 for 8: in 331 / 299 as published, images of 8 pixels could not move."""
    return size * 5 // 4


def resize_pad_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network on the frame, behind the random map."""
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
    """Offer it; the map is linear for each draw, so it needs no stand-in."""
    yield Defense(
        name="resize-pad",
        cite="arXiv:1711.01991",
        summary="Resizes and shifts each image by chance inside a grey frame.",
        recipe=Recipe(resize_pad_cnn, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
        build=build,
        randomness=Randomness(draws=10),
        quick=False,
    )

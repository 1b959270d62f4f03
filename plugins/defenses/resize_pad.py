"""Random resizing and padding: the image a little larger, somewhere in a frame. Xie et al. 2018."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, hookimpl
from plugins.defenses._cnn import cnn
from plugins.defenses._losses import clean_loss
from plugins.defenses._preprocessing import Filtered
from plugins.defenses._resampling import framed, seen, whole

GREY = 0.5


def resized(images: Tensor, width: int) -> Tensor:
    """Square images, each at a size and a place of its own, in a grey square of `width` pixels.

    The size is drawn from that of the image up to `width`: an image as wide stays as it is.
    """
    size = images.shape[3]
    side = whole(images, size, width)
    rows, columns = (
        framed(whole(images, 0, width - side), side, size, width).to(images) for _ in range(2)
    )
    return seen(images - GREY, rows, columns) + GREY


def frame(size: int) -> int:
    """10 for 8: in 331 / 299 as published, images of 8 pixels could not move."""
    return size * 5 // 4


def moving(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network on the frame, behind the random map."""
    channels, size, _ = shape
    width = frame(size)
    return Filtered(cnn((channels, width, width), classes), partial(resized, width=width))


def build(loader: Loader) -> nn.Module:
    """The network trained behind the same random map."""
    return loader.trained(moving(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer it; the map is linear for each draw, so it needs no stand-in."""
    yield Defense(
        name="resize-pad",
        cite="arXiv:1711.01991",
        summary="Resizes and shifts each image by chance inside a grey frame.",
        recipe=Recipe(moving, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
        build=build,
        randomness=Randomness(draws=10),
        quick=False,
    )

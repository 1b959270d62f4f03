"""Bit-depth reduction: see fewer shades, be fooled by fewer. Xu et al. 2018, Guo et al. 2018."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from bench.kit import straight_through
from bench.plugin import Defense, Shelf, hookimpl

BITS = 3


def squeeze(images: Tensor, bits: int) -> Tensor:
    """Every pixel in [0, 1] to the nearest of 2^bits even levels; halves to the even level."""
    levels = 2**bits - 1
    return images.mul(levels).round().div(levels)


class Squeezed(nn.Module):
    """Classify what is left of the image after a map from images to images."""

    def __init__(self, classifier: nn.Module, squeezer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier = classifier
        self.squeezer = squeezer

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        answer: Tensor = self.classifier(self.squeezer(images))
        return answer


def three_bits(images: Tensor) -> Tensor:
    """Eight shades."""
    return squeeze(images, BITS)


def build(shelf: Shelf) -> nn.Module:
    """The undefended network behind the rounding."""
    return Squeezed(shelf.built("undefended"), three_bits)


def stand_in(shelf: Shelf) -> nn.Module:
    """The same, with the slope of the identity where rounding has none (arXiv:1802.00420)."""
    return Squeezed(shelf.built("undefended"), straight_through(three_bits))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer rounding to three bits."""
    yield Defense(
        name="bit-depth",
        cite="arXiv:1704.01155",
        summary=f"Rounds every pixel to {BITS} bits, then asks the undefended network.",
        build=build,
        stand_in=stand_in,
    )

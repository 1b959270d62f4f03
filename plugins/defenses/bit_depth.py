"""Bit-depth reduction: see fewer shades, be fooled by fewer. Xu et al. 2018, Guo et al. 2018."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.plugin import Defense, hookimpl, straight_through
from plugins.defenses._preprocessing import before_undefended

BITS = 3


def quantize(images: Tensor, bits: int) -> Tensor:
    """Every pixel in [0, 1] to the nearest of 2^bits even levels; halves to the even level."""
    levels = 2**bits - 1
    return images.mul(levels).round().div(levels)


def three_bits(images: Tensor) -> Tensor:
    """Eight shades."""
    return quantize(images, BITS)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer rounding to three bits."""
    yield Defense(
        name="bit-depth",
        cite="arXiv:1704.01155",
        summary=f"Rounds every pixel to {BITS} bits, then asks the undefended network.",
        build=before_undefended(three_bits),
        # Rounding has no slope; the identity has (arXiv:1802.00420).
        bpda=before_undefended(straight_through(three_bits)),
    )

"""Bit-depth reduction: rounds every pixel to fewer grey levels.

Xu et al. 2018, arXiv:1704.01155; Guo et al. 2018, arXiv:1711.00117.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.plugin import Defense, hookimpl, straight_through
from plugins.defenses._preprocessing import before_undefended

BITS = 3


def quantize(images: Tensor, bits: int) -> Tensor:
    """Images [n, C, H, W] in [0, 1], every pixel rounded to the nearest of 2^bits levels.

    Ties go to the even level.
    """
    levels = 2**bits - 1
    return images.mul(levels).round().div(levels)


def three_bits(images: Tensor) -> Tensor:
    """Images [n, C, H, W] rounded to eight levels."""
    return quantize(images, BITS)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register rounding to three bits."""
    yield Defense(
        name="bit-depth",
        cite="arXiv:1704.01155",
        summary=f"Rounds every pixel to {BITS} bits in front of the undefended network.",
        build=before_undefended(three_bits),
        # Rounding has no useful gradient; the identity replaces it (arXiv:1802.00420).
        bpda=before_undefended(straight_through(three_bits)),
    )

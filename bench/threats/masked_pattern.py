"""A printed pattern on a given region, such as glasses or stickers.

Sharif et al. 2016 (doi:10.1145/2976749.2978392), Eykholt et al. 2018 (arXiv:1707.08945).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.threats.parametric import ParametricSet, clamp_straight_through


def _glasses(row: Tensor, column: Tensor) -> Tensor:
    """Two rims, a bridge and two temples."""
    radius = [((row - 0.5) ** 2 + (2 * (column - side)) ** 2).sqrt() for side in (0.27, 0.73)]
    rims = [(one > 0.26) & (one < 0.48) for one in radius]
    bar = (row - 0.5).abs() < 0.12
    between = (column > 0.47) & (column < 0.53)
    temples = (column < 0.08) | (column > 0.92)
    return rims[0] | rims[1] | (bar & (between | temples))


def _stickers(row: Tensor, column: Tensor) -> Tensor:
    """Two bars across the region, at its top and its bottom."""
    return ((row < 0.25) | (row > 0.75)) & (column > 0.1) & (column < 0.9)


def _rectangle(row: Tensor, column: Tensor) -> Tensor:
    """The whole region."""
    return (row >= 0) & (column >= 0)


REGIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "glasses": _glasses, "stickers": _stickers, "rectangle": _rectangle
}  # fmt: skip
"""Name -> places in a unit square, of row [H, 1] and column [1, W], to whether they are printed."""


@dataclass(frozen=True)
class MaskedPattern(ParametricSet):
    """An opaque print on the pixels of a region, whose colours are chosen; all others are kept.

    A point is [C, H, W] in [-1, 1], from black over grey to white; outside the region it has no
    effect. The point 0 is no print, and so the clean image. `eps` bounds the contrast of the print.
    The region is drawn in a rectangle of the image, whose place and size are shares of its sides.
    """

    region: str = "glasses"
    """`glasses`, `stickers` or `rectangle`."""
    top: float = 0.25
    left: float = 0.0
    height: float = 0.5
    width: float = 1.0

    name = "masked-pattern"
    limits: ClassVar = {"top": (0, 1), "left": (0, 1), "height": (0.01, 1), "width": (0.01, 1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.region not in REGIONS:
            raise ValueError(f"region is {self.region!r}; use one of {', '.join(REGIONS)}.")

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """That of an image, for clean images x [n, C, H, W]; raises ValueError for no pixel."""
        if not self.mask(x).any():
            raise ValueError(
                f"{self.region} of {self.height:g} x {self.width:g} of an image of {x.shape[2]} x"
                f" {x.shape[3]} has no pixel: choose a larger size."
            )
        return tuple(x.shape[1:])

    def mask(self, x: Tensor) -> Tensor:
        """Bool [H, W]: the pixels of the region in images x [n, C, H, W]."""
        row, column = (
            (((torch.arange(size, dtype=torch.float64) + 0.5) / size) - first) / length
            for size, first, length in (
                (x.shape[2], self.top, self.height), (x.shape[3], self.left, self.width)
            )
        )  # fmt: skip
        row, column = row[:, None], column[None, :]
        inside = (row >= 0) & (row < 1) & (column >= 0) & (column < 1)
        return (inside & REGIONS[self.region](row, column)).to(x.device)

    def colours(self, adv: Tensor) -> Tensor:
        """The printed colours in [0, 1] of points [n, C, H, W]."""
        return (adv + 1) / 2

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of points [n, C, H, W]."""
        mask = self.mask(x)
        value = clamp_straight_through(self.colours(adv))
        printed = (adv.detach() * mask).flatten(1).any(1)[:, None, None, None]
        # At the point 0 the image is x to the bit, with the gradient of a print.
        shown = torch.where(printed, value, x + (value - value.detach()))
        return torch.where(mask, shown, x)

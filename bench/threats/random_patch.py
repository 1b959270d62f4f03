"""A square patch at a random place of each image (Brown et al. 2017, arXiv:1712.09665)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from bench.threats.parametric import LARGEST, ParametricSet, clamp_straight_through
from bench.threats.random_numbers import KeyedRandomNumbers, mix
from bench.threats.warps import sine_cosine


class PatchPlaces(NamedTuple):
    """Where the pixels of images lie in a patch; [n, H, W] each."""

    row: Tensor
    """Float64, in pixels of the patch from its first row."""
    column: Tensor
    inside: Tensor
    """Bool: the pixel is covered by the patch."""


@dataclass(frozen=True)
class RandomPatch(ParametricSet):
    """A patch of `size` x `size` pixels whose place, scale and rotation are drawn for each image.

    A point is [C, size, size] in [-1, 1]: from black at -1 over the clean pixel at 0 to white. The
    patch is scaled by a factor in [`smallest`, `largest`] and rotated by up to `degrees`. The draws
    depend on the pixels of the clean image and on `draw` alone, so that an attacker who sees no
    test image does not know them, and every image that is made again is the same.
    """

    size: int = 3
    smallest: float = 1.0
    largest: float = 1.0
    degrees: float = 0.0
    draw: int = 0
    """Number of the draw for each image; attacks that are fitted use other ones."""

    name = "random-patch"
    limits: ClassVar = {
        "size": (1, LARGEST), "smallest": (0.01, 100), "largest": (0.01, 100), "degrees": (0, 180),
        "draw": (0, 2**31),
    }  # fmt: skip

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """One parameter for each value of the patch; raises ValueError where it is too large.

        The clean images x are [n, C, H, W].
        """
        side = self.size * self.largest
        if side > min(x.shape[2:]):
            raise ValueError(
                f"a patch of {side:g} x {side:g} pixels does not fit into images of {x.shape[2]} x"
                f" {x.shape[3]}: choose a smaller size."
            )
        return (x.shape[1], self.size, self.size)

    def drawn(self, number: int) -> Self:
        """The set with other places, scales and rotations."""
        return replace(self, draw=self.draw + number)

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of patches [n, C, size, size]; other pixels are unchanged."""
        places = self.places(x)
        value = _bilinear_in_patch(adv, places)
        changed = x + torch.where(value > 0, value * (1 - x), value * x)
        return torch.where(places.inside[:, None], clamp_straight_through(changed), x)

    def places(self, x: Tensor) -> PatchPlaces:
        """The drawn places for images x [n, C, H, W]."""
        height, width = x.shape[2:]
        zero = torch.full_like(content_key(x), self.draw)
        unit = KeyedRandomNumbers(content_key(x), zero).uniform("place", (4,)).double()
        scale = self.smallest + (self.largest - self.smallest) * unit[:, 2]
        sine, cosine = sine_cosine(math.radians(self.degrees) * (2 * unit[:, 3] - 1))
        side = self.size * scale
        top, left = (
            (unit[:, axis] * (room - side + 1)).floor().clamp_min(0)
            for axis, room in ((0, height), (1, width))
        )
        rows = torch.arange(height, dtype=torch.float64, device=x.device)[None, :, None]
        columns = torch.arange(width, dtype=torch.float64, device=x.device)[None, None, :]
        down, right = (
            index - (first + (side - 1) / 2)[:, None, None]
            for index, first in ((rows, top), (columns, left))
        )
        sine, cosine, scale = (part[:, None, None] for part in (sine, cosine, scale))
        middle = (self.size - 1) / 2
        row = (right * sine + down * cosine) / scale + middle
        column = (right * cosine - down * sine) / scale + middle
        inside = (row >= -0.5) & (row < self.size - 0.5)
        inside &= (column >= -0.5) & (column < self.size - 0.5)
        return PatchPlaces(row, column, inside)


def content_key(x: Tensor) -> Tensor:
    """A key [n] int64 of the grey levels of images x [n, C, H, W], the same on every device."""
    levels = (x.double() * 255).round().long().flatten(1)
    position = torch.arange(levels.shape[1], dtype=torch.int64, device=x.device)
    return mix((levels + 1) * mix(position)).sum(1)


def _bilinear_in_patch(adv: Tensor, places: PatchPlaces) -> Tensor:
    """The values [n, C, H, W] of patches [n, C, s, s] at places, bilinear; the edge goes on."""
    last = adv.shape[2] - 1
    row, column = places.row.clamp(0, last), places.column.clamp(0, last)
    top, left = row.floor(), column.floor()
    down, right = (row - top).to(adv)[:, None], (column - left).to(adv)[:, None]

    def taken(first: Tensor, second: Tensor) -> Tensor:
        index = (first.clamp_max(last) * adv.shape[3] + second.clamp_max(last)).long()
        flat = index.flatten(1)[:, None].expand(-1, adv.shape[1], -1)
        return adv.flatten(2).gather(2, flat).view(*adv.shape[:2], *index.shape[1:])

    above = taken(top, left) * (1 - right) + taken(top, left + 1) * right
    below = taken(top + 1, left) * (1 - right) + taken(top + 1, left + 1) * right
    return above * (1 - down) + below * down

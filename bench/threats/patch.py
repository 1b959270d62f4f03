"""A patch: all pixels of a rectangle at a fixed place (Brown et al. 2017, arXiv:1712.09665)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.threats.parametric import LARGEST, ParametricSet, clamp_straight_through


@dataclass(frozen=True)
class Patch(ParametricSet):
    """Each pixel of a rectangle may take any value in [0, 1]; all others stay as they are.

    A point is [C, height, width] in [-1, 1]: from black at -1 over the clean pixel at 0 to white.
    The rectangle is `height` x `width` pixels with its upper left corner at `top`, `left`.
    """

    height: int = 3
    width: int = 3
    top: int = 0
    left: int = 0

    name = "patch"
    limits: ClassVar = {
        "height": (1, LARGEST), "width": (1, LARGEST), "top": (0, LARGEST), "left": (0, LARGEST)
    }  # fmt: skip

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """One parameter for each value in the rectangle; raises ValueError where it does not fit.

        The clean images x are [n, C, H, W].
        """
        if self.top + self.height > x.shape[2] or self.left + self.width > x.shape[3]:
            raise ValueError(
                f"a patch of {self.height} x {self.width} pixels at ({self.top}, {self.left}) does"
                f" not fit into images of {x.shape[2]} x {x.shape[3]}: choose another place."
            )
        return (x.shape[1], self.height, self.width)

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of points [n, C, height, width]."""
        rows = slice(self.top, self.top + self.height)
        columns = slice(self.left, self.left + self.width)
        clean = x[:, :, rows, columns]
        changed = clean + torch.where(adv > 0, adv * (1 - clean), adv * clean)
        image = x.clone()
        image[:, :, rows, columns] = clamp_straight_through(changed)
        return image

"""Rotation and translation of the image (Engstrom et al. 2019, arXiv:1712.02779)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bench.threats.parametric import ParametricSet, clamp_straight_through
from bench.threats.warps import rotate_and_shift


@dataclass(frozen=True)
class RotationTranslation(ParametricSet):
    """Rotation by up to `degrees` and shifts by up to `pixels`; a point is (angle, right, down).

    Bilinear, black outside the image.
    """

    degrees: float = 30.0
    pixels: float = 3.0

    name = "rotation-translation"
    limits: ClassVar = {"degrees": (0, 180), "pixels": (0, 1000)}

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Three parameters."""
        return (3,)

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of points [n, 3]."""
        angle = adv[:, 0].double() * math.radians(self.degrees)
        warped = rotate_and_shift(x, angle, adv[:, 1:].double() * self.pixels)
        return clamp_straight_through(warped)

"""Nuisance transforms of a physical threat model: how an image changes on its way to the model.

Success against them is a share of draws (Athalye et al. 2018, arXiv:1707.07397). The channel of
printing and photographing follows Kurakin et al. 2017 (arXiv:1607.02533). Elementwise arithmetic
and keyed random numbers: a row depends on its own image and its own draws alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bench.threats.corrupted_images import jpeg
from bench.threats.norms import per_row
from bench.threats.parametric import clamp_straight_through
from bench.threats.random_numbers import RandomNumbers
from bench.threats.warps import bilinear, sine_cosine

BEST_QUALITY = 100
SHARPEST = 1e-3  # pixels; the smallest standard deviation of a blur, which changes no image


@dataclass(frozen=True)
class Nuisance:
    """A distribution of transforms, drawn anew for each image and query; by default the identity.

    In this order: place, scale, rotation and perspective (bilinear, black outside), blur, contrast,
    brightness, noise, and quantisation as in JPEG. Ranges are symmetric and draws uniform. An
    example is broken where the goal is reached on `share` of the referee's draws.

    Raises ValueError for a field outside its limits.
    """

    shift: float = 0.0
    """Largest shift to the right and down, in pixels."""
    smallest: float = 1.0
    """Smallest and largest factor of size."""
    largest: float = 1.0
    degrees: float = 0.0
    """Largest rotation."""
    perspective: float = 0.0
    """Largest change of size from the middle to an edge of the image, as a share."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian, in pixels."""
    contrast: float = 0.0
    """Largest change of the distance from grey 0.5, as a share."""
    brightness: float = 0.0
    """Largest value added to all pixels."""
    noise: float = 0.0
    """Standard deviation of noise, independent for each value."""
    quality: int = 0
    """Of JPEG quantisation, 1 to 100; 0: none."""
    share: float = 0.6
    """Of the draws on which the goal must be reached."""
    draws: int = 16
    """Draws over which the gradients and scores of an attack are averaged (EOT)."""

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "shift": (0, 1000), "smallest": (0.01, 1), "largest": (1, 100), "degrees": (0, 180),
        "perspective": (0, 0.4), "blur": (0, 100), "contrast": (0, 1), "brightness": (0, 1),
        "noise": (0, 1), "quality": (0, BEST_QUALITY), "share": (0.05, 1), "draws": (1, 1000),
    }  # fmt: skip
    """Smallest and largest value of each field."""

    def __post_init__(self) -> None:
        for name, (least, most) in self.limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} of a nuisance is {value}; use {least:g} to {most:g}.")

    def times(self, severity: float) -> Self:
        """All ranges multiplied by a severity of at least 0; 0 gives the identity.

        >>> Nuisance(degrees=10.0, largest=1.2, quality=60).times(0.5)
        Nuisance(largest=1.1, degrees=5.0, quality=80)
        """
        scaled = {
            name: severity * getattr(self, name)
            for name in (
                "shift",
                "degrees",
                "perspective",
                "blur",
                "contrast",
                "brightness",
                "noise",
            )
        }
        smallest, largest = (1 + severity * (end - 1) for end in (self.smallest, self.largest))
        lost = severity * (BEST_QUALITY - self.quality)
        coded = self.quality > 0 and severity > 0
        quality = max(1, round(BEST_QUALITY - lost)) if coded else 0
        return replace(self, **scaled, smallest=smallest, largest=largest, quality=quality)

    def __repr__(self) -> str:
        """The fields that differ from the identity."""
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Nuisance({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    def parameters(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def seen(self, images: Tensor, random: RandomNumbers) -> Tensor:
        """Images [n, C, H, W] in [0, 1] as the model sees them, at one draw for each.

        Gradients pass clamp and quantisation as if there were none.
        """
        image = self._blurred(self._warped(images, random), random)
        contrast, brightness = _symmetric(random, "light", 2).to(image).unbind(1)
        image = image + per_row(self.contrast * contrast, image) * (image - 0.5)
        image = image + per_row(self.brightness * brightness, image)
        if self.noise:
            image = image + self.noise * random.normal("noise", tuple(image.shape[1:])).to(image)
        image = clamp_straight_through(image)
        quantised: Tensor = _Quantisation.apply(image, self.quality) if self.quality else image
        return quantised

    def _warped(self, x: Tensor, random: RandomNumbers) -> Tensor:
        """Images x [n, C, H, W], moved, scaled, rotated and seen from the side."""
        height, width = x.shape[2:]
        unit = _symmetric(random, "place", 5)
        down, right, angle, *tilt = (part[:, None, None] for part in unit.unbind(1))
        span = self.largest - self.smallest
        scale = self.smallest + span * random.uniform("scale", (1,)).double()[:, :, None]
        sine, cosine = sine_cosine(math.radians(self.degrees) * angle)
        middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
        rows = torch.arange(height, dtype=torch.float64, device=x.device)[:, None] - middle_row
        columns = torch.arange(width, dtype=torch.float64, device=x.device)[None, :] - middle_column
        rows, columns = rows - self.shift * down, columns - self.shift * right
        far = 1 + self.perspective * (tilt[0] * rows / height + tilt[1] * columns / width) * 2
        scale = scale * far.clamp_min(0.05)
        from_row = (columns * sine + rows * cosine) / scale + middle_row
        from_column = (columns * cosine - rows * sine) / scale + middle_column
        return bilinear(x, from_row, from_column)

    def _blurred(self, x: Tensor, random: RandomNumbers) -> Tensor:
        """Images x [n, C, H, W] under a Gaussian of a drawn width; edges are repeated."""
        sigma = self.blur * random.uniform("blur", (1,)).double()[:, 0]
        reach = math.ceil(3 * self.blur)
        steps = torch.arange(-reach, reach + 1, dtype=torch.float64, device=x.device)
        weights = (-0.5 * (steps / sigma.clamp_min(SHARPEST)[:, None]) ** 2).exp()
        weights = (weights / weights.sum(1, keepdim=True)).to(x)
        for axis in (2, 3):
            places = torch.arange(x.shape[axis], device=x.device)
            blurred = torch.zeros_like(x)
            for step, weight in zip(range(-reach, reach + 1), weights.unbind(1), strict=True):
                moved = (places + step).clamp(0, x.shape[axis] - 1)
                blurred = blurred + per_row(weight, x) * x.index_select(axis, moved)
            x = blurred
        return x


def print_and_scan(severity: float = 1.0) -> Nuisance:
    """The channel of printing and photographing an image of about 8 to 32 pixels a side."""
    channel = Nuisance(
        shift=0.5, smallest=0.95, largest=1.05, degrees=3.0, perspective=0.08, blur=0.5,
        contrast=0.2, brightness=0.1, noise=0.02, quality=50,
    )  # fmt: skip
    return channel.times(severity)


def _symmetric(random: RandomNumbers, name: str, count: int) -> Tensor:
    """Uniform [n, count] in [-1, 1), float64."""
    return 2 * random.uniform(name, (count,)).double() - 1


class _Quantisation(torch.autograd.Function):
    """JPEG quantisation with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, quality: int) -> Tensor:
        return jpeg(image.double(), quality).clamp(0, 1).to(image)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

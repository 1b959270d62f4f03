"""Cropping, resizing and padding as matrix products: an image X becomes R X C^T.

Each image of a batch has its own matrices. Sizes are in pixels. Interpolation is bilinear with
pixel i at the point i + 1/2, so the products have a useful gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop_matrix(start: Tensor, side: int, size: int) -> Tensor:
    """Matrices [n, size, size] that stretch `side` pixels from `start` [n] on to all `size`."""
    place = (torch.arange(size, device=start.device) + 0.5) * (side / size) - 0.5
    return _interpolated(start[:, None] + place.clamp(0, side - 1), size)


def pad_matrix(start: Tensor, side: Tensor, size: int, width: int) -> Tensor:
    """Matrices [n, width, size] that stretch `size` pixels to `side` [n], from `start` [n] on.

    Rows outside are zero.
    """
    inner = torch.arange(width, device=start.device) - start[:, None]
    place = (inner + 0.5) * (size / side[:, None]) - 0.5
    inside = (inner >= 0) & (inner < side[:, None])
    return _interpolated(place.clamp(0, size - 1), size) * inside[:, :, None]


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The images R X C^T of [n, C, H, W]; `rows` R are [n, h, H], `columns` C [n, w, W]."""
    return rows[:, None] @ images @ columns[:, None].mT


def random_integer(images: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """A uniform integer [n] int64 from low to high inclusive for each image.

    It is drawn from torch's generator.
    """
    share = torch.rand(len(images), device=images.device)
    return low + (share * (high - low + 1)).long()


def _interpolated(place: Tensor, size: int) -> Tensor:
    pixels = torch.arange(size, device=place.device)
    return (1 - (place[..., None] - pixels).abs()).clamp_min(0)

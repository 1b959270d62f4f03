"""Cropping, resizing and padding as matrices: an image X becomes R X C^T, with a slope of its own.

Each image of a batch has matrices of its own; sizes are in pixels. Interpolation is bilinear, pixel
i being the point i + 1/2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop_matrix(start: Tensor, side: int, size: int) -> Tensor:
    """[n, size, size]: the `side` pixels from `start` [n] on, stretched over all `size`."""
    place = (torch.arange(size, device=start.device) + 0.5) * (side / size) - 0.5
    return _interpolated(start[:, None] + place.clamp(0, side - 1), size)


def pad_matrix(start: Tensor, side: Tensor, size: int, width: int) -> Tensor:
    """[n, width, size]: `size` pixels stretched over `side` [n] of `width`, from `start` [n] on.

    Rows outside are zero.
    """
    inner = torch.arange(width, device=start.device) - start[:, None]
    place = (inner + 0.5) * (size / side[:, None]) - 0.5
    inside = (inner >= 0) & (inner < side[:, None])
    return _interpolated(place.clamp(0, size - 1), size) * inside[:, :, None]


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """R X C^T for each image of [n, C, H, W]; `rows` [n, h, H], `columns` [n, w, W]."""
    return rows[:, None] @ images @ columns[:, None].mT


def random_integer(images: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """[n] int64: for each image a number from low to high, both possible, by torch's generator."""
    share = torch.rand(len(images), device=images.device)
    return low + (share * (high - low + 1)).long()


def _interpolated(place: Tensor, size: int) -> Tensor:
    pixels = torch.arange(size, device=place.device)
    return (1 - (place[..., None] - pixels).abs()).clamp_min(0)

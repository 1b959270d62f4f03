"""Random augmentations of training images that keep the label: flips, shifts, noise.

Each maps images [n, C, H, W] in [0, 1] to the same shape, with one draw from torch's generator for
each image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.plugin import per_row


def random_flip(images: Tensor) -> Tensor:
    """Images [n, C, H, W], each mirrored left to right with probability one half."""
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(per_row(mirrored), images.flip(3), images)


def random_shift(images: Tensor, reach: int) -> Tensor:
    """Images [n, C, H, W], each shifted by up to `reach` pixels in both axes, borders black."""
    rows, channels, height, width = images.shape
    device = images.device
    down, right = torch.randint(2 * reach + 1, (2, rows, 1), device=device)
    i = (down + torch.arange(height, device=device)).view(rows, 1, height, 1)
    j = (right + torch.arange(width, device=device)).view(rows, 1, 1, width)
    image = torch.arange(rows, device=device).view(rows, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, channels, 1, 1)
    return F.pad(images, (reach, reach, reach, reach))[image, channel, i, j]


def add_gaussian_noise(images: Tensor, sigma: float) -> Tensor:
    """Images [n, C, H, W] plus N(0, sigma^2) on every pixel, clipped to [0, 1]."""
    return (images + sigma * torch.randn_like(images)).clamp(0, 1)

"""Warps of images by elementwise arithmetic, the same to the bit on every processor.

`torch.nn.functional.grid_sample` is not the identity where nothing moves, and its results differ
between processors; so do the sine and cosine of torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

SERIES_TERMS = 14  # of sine and cosine; the next one is below 1e-15 for angles up to pi


def sine_cosine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine [n] of angles [n] in [-pi, pi], float64, by their power series.

    >>> sine, cosine = sine_cosine(torch.tensor([0, 0.5235987755982988], dtype=torch.float64))
    >>> sine.tolist()[0], cosine.tolist()[0], round(sine.tolist()[1], 12)
    (0.0, 1.0, 0.5)
    """
    square = angle * angle
    sine, cosine = torch.ones_like(angle), torch.ones_like(angle)
    for term in range(SERIES_TERMS, 0, -1):
        sine = 1 - sine * square / ((2 * term) * (2 * term + 1))
        cosine = 1 - cosine * square / ((2 * term - 1) * (2 * term))
    return sine * angle, cosine


def rotate_and_shift(x: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Images x [n, C, H, W] rotated by `angle` [n] in radians and moved by `shift` [n, 2] pixels.

    Counter-clockwise around the centre; shifts are to the right and down. Bilinear, black outside.
    """
    height, width = x.shape[2:]
    sine, cosine = (part[:, None, None] for part in sine_cosine(angle.double()))
    right, down = (part[:, None, None] for part in shift.double().unbind(1))
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    rows = torch.arange(height, dtype=torch.float64, device=x.device)[:, None] - middle_row
    columns = torch.arange(width, dtype=torch.float64, device=x.device)[None, :] - middle_column
    rows, columns = rows - down, columns - right
    from_row = (columns * sine + rows * cosine) + middle_row
    from_column = (columns * cosine - rows * sine) + middle_column
    return bilinear(x, from_row, from_column)


def bilinear(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The pixels of x [n, C, H, W] at real places `row` and `column` [n, H, W], black outside."""
    top, left = row.detach().floor(), column.detach().floor()
    down, right = (row - top).to(x)[:, None], (column - left).to(x)[:, None]
    above = _pixels(x, top, left) * (1 - right) + _pixels(x, top, left + 1) * right
    below = _pixels(x, top + 1, left) * (1 - right) + _pixels(x, top + 1, left + 1) * right
    return above * (1 - down) + below * down


def _pixels(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The pixels of x [n, C, H, W] at whole places [n, H, W]; 0 outside the image."""
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    index = place.long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
    taken = x.flatten(2).gather(2, index).view_as(x)
    return torch.where(inside[:, None], taken, 0)

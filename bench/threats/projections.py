"""Arithmetic inside the pixel box: how far a pixel can go, and how far all of them must."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SETTLED = {torch.float64: 4e-15, torch.float32: 3e-7}
"""Of the value: a Newton step below it is rounding."""


def room_along(direction: Tensor, x: Tensor) -> Tensor:
    """[n, d]: how far each pixel can go along the sign of `direction` inside the box."""
    return torch.where(direction > 0, 1 - x, x).flatten(1)


def smallest_step(slope: Tensor, cap: Tensor, bound: Tensor) -> Tensor:
    """[n]: the least t at which sum min(t slope, cap) is `bound` [n], or all caps are reached.

    The sum over [n, d] is concave and increasing in t, so Newton from the left climbs to the root
    and never passes it. Each step passes a breakpoint.
    """
    settled, small = SETTLED[slope.dtype], nonzero_slope(slope)
    t = bound / slope.sum(1).clamp_min(small)
    for _ in range(slope.shape[1] + 1):
        line = slope * t[:, None]
        free = torch.where(line < cap, slope, 0).sum(1)
        rise = (bound - torch.minimum(line, cap).sum(1)) / free.clamp_min(small)
        # A settled row stays to the bit, however long the rows beside it take.
        climbs = (rise > settled * t) & (free > 0)
        if not climbs.any():
            break
        t = torch.where(climbs, t + rise, t)
    return t


def nonzero_slope(like: Tensor) -> float:
    """What is divided by where there is no slope; what is divided stays finite."""
    return math.sqrt(torch.finfo(like.dtype).tiny)


def ascent_terms(weight: Tensor, rise: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n, d] weight turned round for a fall, [n, d] each pixel's room along it; [n] what to climb.

    Weight and climb are divided by the largest weight: the square of 1e-25 is zero in float32.
    Where the box ends below, the climb is twice what it allows.
    """
    flat = weight.flatten(1) * rise.sign()[:, None]
    largest = flat.abs().amax(1).clamp_min(nonzero_slope(flat))
    uphill = flat / largest[:, None]
    room = room_along(uphill.view_as(x), x)
    return uphill, room, torch.minimum(rise.abs() / largest, 2 * (uphill.abs() * room).sum(1))


def shifted(x: Tensor, change: Tensor) -> Tensor:
    """x + change [n, d] in the box."""
    return (x.flatten(1) + change).clamp_(0, 1).to(x.dtype).view_as(x)

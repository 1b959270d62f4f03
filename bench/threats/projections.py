"""Projections onto a norm ball or a hyperplane inside the pixel box [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEWTON_PRECISION = {torch.float64: 4e-15, torch.float32: 3e-7}
"""Relative size below which a Newton step is rounding."""
BISECTION_STEPS = 40  # beyond the resolution of float32


def distance_to_box(direction: Tensor, x: Tensor) -> Tensor:
    """Distance [n, d] of each pixel to the box, along the sign of `direction` [n, C, H, W]."""
    return torch.where(direction > 0, 1 - x, x).flatten(1)


def smallest_step(slope: Tensor, cap: Tensor, bound: Tensor) -> Tensor:
    """The least t [n] at which sum min(t * slope, cap) is `bound` [n], or all caps are reached.

    slope and cap are [n, d]. The sum is concave and increasing in t, so that Newton's method from
    the left converges without passing the root, and every step passes a breakpoint.
    """
    settled, small = NEWTON_PRECISION[slope.dtype], smallest_divisor(slope)
    t = bound / slope.sum(1).clamp_min(small)
    for _ in range(slope.shape[1] + 1):
        line = slope * t[:, None]
        free = torch.where(line < cap, slope, 0).sum(1)
        rise = (bound - torch.minimum(line, cap).sum(1)) / free.clamp_min(small)
        # A converged row keeps its bits while other rows go on.
        unfinished = (rise > settled * t) & (free > 0)
        if not unfinished.any():
            break
        t = torch.where(unfinished, t + rise, t)
    return t


def project_l1(adv: Tensor, x: Tensor, radius: float | Tensor) -> Tensor:
    """The nearest points [n, C, H, W] of the L1 ball around x in the box; `radius` is one or [n].

    They are clamp(x + soft(adv - x, threshold)) with the least threshold inside the ball.
    """
    boxed, change = adv.clamp(0, 1), adv - x
    reach, size = distance_to_box(change, x), change.flatten(1).abs()
    low, high = torch.zeros_like(size[:, 0]), size.amax(1)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        norm = torch.minimum((size - middle[:, None]).clamp_min_(0), reach).sum(1)
        outside = norm > radius
        low = torch.where(outside, middle, low)
        high = torch.where(outside, high, middle)
    kept = torch.minimum((size - high[:, None]).clamp_min_(0), reach)
    moved = (x + kept.view_as(x) * change.sign()).clamp_(0, 1)
    inside = (boxed - x).flatten(1).abs().sum(1) <= radius
    return torch.where(inside.view(-1, 1, 1, 1), boxed, moved)


def smallest_divisor(like: Tensor) -> float:
    """A divisor in place of a slope of zero, for the dtype of slopes [n, d]."""
    return math.sqrt(torch.finfo(like.dtype).tiny)


def hyperplane_terms(weight: Tensor, rise: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of a move from x [n, C, H, W] to the hyperplane <weight, point - x> = rise [n].

    Returns the signed weights [n, d], the distance of each pixel to the box along them [n, d], and
    the absolute rise [n]. Weights and rise are divided by the largest weight, since the square of
    1e-25 is zero in float32. Where the box does not reach the hyperplane, the rise is twice what
    the box allows.
    """
    flat = weight.flatten(1) * rise.sign()[:, None]
    largest = flat.abs().amax(1).clamp_min(smallest_divisor(flat))
    uphill = flat / largest[:, None]
    room = distance_to_box(uphill.view_as(x), x)
    return uphill, room, torch.minimum(rise.abs() / largest, 2 * (uphill.abs() * room).sum(1))


def moved_in_box(x: Tensor, change: Tensor) -> Tensor:
    """x [n, C, H, W] plus change [n, d], clipped to the box."""
    return (x.flatten(1) + change).clamp_(0, 1).to(x.dtype).view_as(x)

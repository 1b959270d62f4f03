"""Search directions of a projected L-BFGS method in the box [0, 1], for batches of images."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.plugin import per_row

LEAST_CURVATURE = 1e-6  # cosine of a step and its change of gradient, below which it is not used


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner products [n] of images [n, C, H, W]."""
    return (one * other).flatten(1).sum(1)


def remember(memory: Tensor, newest: Tensor, where: Tensor) -> Tensor:
    """The memory [n, m, C, H, W] with `newest` [n, C, H, W] first in the rows `where` [n] bool."""
    shifted = torch.cat([newest[:, None], memory[:, :-1]], 1)
    return torch.where(per_row(where, memory), shifted, memory)


def search_direction(point: Tensor, gradient: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """Minus the inverse Hessian times the gradient, [n, C, H, W], over the pixels free to move.

    Nocedal's recursion in two loops over `steps` and `changes` of the gradient [n, m, C, H, W],
    newest first. A pixel at an edge of the box that descent would leave is not free; steps without
    positive curvature among the free pixels are left out, so the direction always descends.
    """
    bound = ((point <= 0) & (gradient > 0)) | ((point >= 1) & (gradient < 0))
    pairs = [
        (step.masked_fill(bound, 0), change.masked_fill(bound, 0))
        for step, change in zip(steps.unbind(1), changes.unbind(1), strict=True)
    ]
    inverse = [inverse_curvature(step, change) for step, change in pairs]
    result = gradient.masked_fill(bound, 0)
    shares = []
    for (step, change), factor in zip(pairs, inverse, strict=True):
        shares.append(factor * dot(step, result))
        result = result - per_row(shares[-1]) * change
    result = result * per_row(first_scale(pairs, inverse))
    for (step, change), factor, share in reversed(list(zip(pairs, inverse, shares, strict=True))):
        result = result + per_row(share - factor * dot(change, result)) * step
    return -result


def inverse_curvature(step: Tensor, change: Tensor) -> Tensor:
    """1 / <step, change> [n]; 0 where it is not clearly positive."""
    product = dot(step, change)
    least = LEAST_CURVATURE * (dot(step, step) * dot(change, change)).sqrt()
    return torch.where(product > least, 1 / product, 0)


def first_scale(pairs: list[tuple[Tensor, Tensor]], inverse: list[Tensor]) -> Tensor:
    """<s, y> / <y, y> [n] of the newest step with positive curvature; 1 without one."""
    scale = torch.ones_like(inverse[0])
    for (_, change), factor in reversed(list(zip(pairs, inverse, strict=True))):
        size = factor * dot(change, change)
        scale = torch.where(size > 0, 1 / size, scale)
    return scale

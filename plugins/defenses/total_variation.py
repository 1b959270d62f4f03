"""Total variation minimisation: the smoothest image that agrees with a random part of the pixels.

Guo et al. 2018, arXiv:1711.00117; split Bregman solver of Goldstein and Osher 2009.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.plugin import Defense, Randomness, hookimpl
from plugins.defenses._preprocessing import before_undefended

WEIGHT = 0.03
KEPT = 0.5
ITERATIONS = 40
PENALTY = 0.15


def difference_matrix(size: int) -> Tensor:
    """The matrix [size - 1, size] that subtracts from each pixel the one before it."""
    eye = torch.eye(size)
    return eye[1:] - eye[:-1]


def total_variation(images: Tensor) -> Tensor:
    """TV(z) [n] of images [n, C, H, W]: sum of |z - its left neighbour| and |z - the one above|."""
    across, down = images.diff(dim=3), images.diff(dim=2)
    return across.abs().flatten(1).sum(1) + down.abs().flatten(1).sum(1)


def objective(z: Tensor, x: Tensor, kept: Tensor, weight: float) -> Tensor:
    """The objective 1/2 ||kept (z - x)||^2 + weight TV(z) [n], with z, x, kept [n, C, H, W]."""
    return (kept * (z - x)).square().flatten(1).sum(1) / 2 + weight * total_variation(z)


def cosine_basis(size: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors [size, size] (columns) and eigenvalues [size] of D^T D: the cosine transform."""
    k = torch.arange(size)
    basis = torch.cos(math.pi / size * k * (k[:, None] + 0.5))
    return basis / basis.norm(dim=0), 4 * torch.sin(math.pi / (2 * size) * k).square()


def minimizer(x: Tensor, kept: Tensor, weight: float, iterations: int) -> Tensor:
    """The minimiser z [n, C, H, W] of the objective, by split Bregman.

    `kept` is 0 or 1 for each pixel. w replaces z in the first term, and p and q replace its
    differences in the second. The remaining quadratic problem for z is diagonal in the cosine
    basis.
    """
    rows, columns = (difference_matrix(size).to(x) for size in x.shape[2:])
    (up, high), (across, wide) = (cosine_basis(size) for size in x.shape[2:])
    up, across = up.to(x), across.to(x)
    scale = (1 + high[:, None] + wide).to(x)
    z = w = fill_dropped(x, kept)
    p, q = w @ columns.T, rows @ w
    a, b, c = torch.zeros_like(x), torch.zeros_like(p), torch.zeros_like(q)
    for _ in range(iterations):
        right = (w - a) + (p - b) @ columns + rows.T @ (q - c)
        z = up @ (up.T @ right @ across / scale) @ across.T
        w = (kept * x + PENALTY * (z + a)) / (kept + PENALTY)
        across_z, down_z = z @ columns.T, rows @ z
        p = soft_threshold(across_z + b, weight / PENALTY)
        q = soft_threshold(down_z + c, weight / PENALTY)
        a, b, c = a + z - w, b + across_z - p, c + down_z - q
    return z


def fill_dropped(x: Tensor, kept: Tensor) -> Tensor:
    """Images x [n, C, H, W] with the mean of a channel's kept pixels in place of the others."""
    mean = (kept * x).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp_min(1)
    return kept * x + (1 - kept) * mean


def soft_threshold(value: Tensor, by: float) -> Tensor:
    """Soft thresholding sign(v) max(|v| - by, 0) of v [n, ...]."""
    return value - value.clamp(-by, by)


def denoise(images: Tensor, weight: float, share: float, iterations: int) -> Tensor:
    """The minimiser for images [n, C, H, W] of which each pixel is kept with probability `share`.

    It is not clipped to [0, 1], because a clipped pixel has no gradient.
    """
    kept = (torch.rand_like(images[:, :1]) < share).to(images)
    return minimizer(images, kept, weight, iterations)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register it in front of the undefended network; the solver is differentiable."""
    change = partial(denoise, weight=WEIGHT, share=KEPT, iterations=ITERATIONS)
    yield Defense(
        name="total-variation",
        cite="arXiv:1711.00117",
        summary=f"The image of smallest total variation that agrees with {KEPT:.0%} of the pixels.",
        build=before_undefended(change),
        randomness=Randomness(draws=4),
        quick=False,
    )

"""Total variation minimisation: the smoothest image that agrees with some of the pixels.

Guo et al. 2018, arXiv:1711.00117; the solver splits variables as Goldstein and Osher 2009 do.
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
    """[size - 1, size]: each pixel less the one before it."""
    eye = torch.eye(size)
    return eye[1:] - eye[:-1]


def total_variation(images: Tensor) -> Tensor:
    """TV(z) [n]: sum of |z - its left neighbour| and |z - the one above|."""
    across, down = images.diff(dim=3), images.diff(dim=2)
    return across.abs().flatten(1).sum(1) + down.abs().flatten(1).sum(1)


def objective(z: Tensor, x: Tensor, kept: Tensor, weight: float) -> Tensor:
    """1/2 ||kept (z - x)||^2 + weight TV(z) [n]."""
    return (kept * (z - x)).square().flatten(1).sum(1) / 2 + weight * total_variation(z)


def cosine_basis(size: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors [size, size] (columns) and eigenvalues of D^T D: the cosine transform."""
    k = torch.arange(size)
    basis = torch.cos(math.pi / size * k * (k[:, None] + 0.5))
    return basis / basis.norm(dim=0), 4 * torch.sin(math.pi / (2 * size) * k).square()


def minimizer(x: Tensor, kept: Tensor, weight: float, rounds: int) -> Tensor:
    """argmin over z of the objective, by split Bregman; `kept` is 0 or 1 for each pixel of x.

    w stands for z in the first term, p and q for its differences in the second; the quadratic
    problem that is left for z is diagonal in cosine waves.
    """
    rows, columns = (difference_matrix(size).to(x) for size in x.shape[2:])
    (up, high), (across, wide) = (cosine_basis(size) for size in x.shape[2:])
    up, across = up.to(x), across.to(x)
    scale = (1 + high[:, None] + wide).to(x)
    z = w = fill_dropped(x, kept)
    p, q = w @ columns.T, rows @ w
    a, b, c = torch.zeros_like(x), torch.zeros_like(p), torch.zeros_like(q)
    for _ in range(rounds):
        right = (w - a) + (p - b) @ columns + rows.T @ (q - c)
        z = up @ (up.T @ right @ across / scale) @ across.T
        w = (kept * x + PENALTY * (z + a)) / (kept + PENALTY)
        across_z, down_z = z @ columns.T, rows @ z
        p = soft_threshold(across_z + b, weight / PENALTY)
        q = soft_threshold(down_z + c, weight / PENALTY)
        a, b, c = a + z - w, b + across_z - p, c + down_z - q
    return z


def fill_dropped(x: Tensor, kept: Tensor) -> Tensor:
    """The mean of the kept pixels in place of the others, channel by channel."""
    mean = (kept * x).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp_min(1)
    return kept * x + (1 - kept) * mean


def soft_threshold(value: Tensor, by: float) -> Tensor:
    """sign(v) max(|v| - by, 0)."""
    return value - value.clamp(-by, by)


def denoise(images: Tensor, weight: float, share: float, rounds: int) -> Tensor:
    """The minimiser for pixels of which each was kept with probability `share`.

    It is not clipped to [0, 1], where rounding may leave it: a clipped pixel has no slope.
    """
    kept = (torch.rand_like(images[:, :1]) < share).to(images)
    return minimizer(images, kept, weight, rounds)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer it before the undefended network; every step of the solver has a slope of its own."""
    change = partial(denoise, weight=WEIGHT, share=KEPT, rounds=ITERATIONS)
    yield Defense(
        name="total-variation",
        cite="arXiv:1711.00117",
        summary=f"The smoothest image through a random {KEPT:.0%} of the pixels.",
        build=before_undefended(change),
        randomness=Randomness(draws=4),
        quick=False,
    )

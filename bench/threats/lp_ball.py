"""Balls of the p-norm for 1 < p < infinity, intersected with the box, with exact projections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.threats.norms import L2, NormBall, per_row
from bench.threats.projections import distance_to_box
from bench.threats.random_numbers import RandomNumbers

SMALLEST_P, LARGEST_P = 1.05, 50.0
OUTER, INNER = 60, 50  # halvings for the multiplier, and for each coordinate
TINY = 1e-300
LOG_RANGE = 700.0  # of the logarithm of the multiplier


@dataclass(frozen=True)
class LpBall(NormBall):
    """||adv - x||_p <= eps for a p of 1.05 to 50; for 1, 2 and infinity use L1, L2 and Linf.

    Raises ValueError for another p.
    """

    p: float = 3.0

    name = "Lp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not SMALLEST_P <= self.p <= LARGEST_P:
            raise ValueError(f"p of Lp is {self.p}; use {SMALLEST_P:g} to {LARGEST_P:g}.")

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """||adv - x||_p [n], of images [n, C, H, W]."""
        return _norm((adv - x).flatten(1), self.p)

    def tolerance(self, pixels: int) -> float:
        """1e-6, and the rounding of powers of float32 differences."""
        return 1e-6 + 4e-7 * self.radius

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """x [n, C, H, W] plus a normal direction of p-norm radius u^(1/d), then clipped."""
        direction = draws.normal("ball", tuple(x.shape[1:]))
        share = (draws.uniform("radius", (1,))[:, 0].clamp_min(1e-12).log() / x[0].numel()).exp()
        length = self.radius * share / _norm(direction.flatten(1), self.p)
        return (x + per_row(length, x) * direction).clamp(0, 1)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The nearest images [n, C, H, W] in L2, of ball and box, by bisection on the multiplier.

        Each change d of size a becomes the d with d + m d^(p-1) = a, or the edge of the box.
        """
        clean = x.double()
        change = (adv.double() - clean).flatten(1)
        room = distance_to_box(change.view_as(x), clean)
        boxed = torch.minimum(change.abs(), room)
        outside = (_norm(boxed, self.p) > self.radius).nonzero()[:, 0]
        if len(outside):
            size, edge = change[outside].abs(), room[outside]
            boxed[outside] = self._at_radius(
                lambda multiplier: torch.minimum(self._shrunk(size, multiplier), edge), size
            )
        return (clean + (boxed * change.sign()).view_as(clean)).clamp(0, 1).to(x)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """sign(g) |g|^(1/(p-1)) [n, C, H, W], of p-norm 1, over the pixels that can move."""
        along = L2(self.eps).steepest(gradient, adv)
        size = along.flatten(1).double().abs()
        size = (size / size.amax(1, keepdim=True).clamp_min(TINY)) ** (1 / (self.p - 1))
        length = _norm(size, self.p)[:, None]
        size = size / torch.where(length > 0, length, 1)
        return size.to(along).view_as(along) * along.sign()

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """The image [n, C, H, W] of ball and box at which <weight, .> is largest, by bisection."""
        clean = x.double()
        gain, room = weight.double().flatten(1).abs(), distance_to_box(weight, clean)
        power = 1 / (self.p - 1)
        change = self._at_radius(
            lambda multiplier: torch.minimum((gain / multiplier) ** power, room), x
        )
        return (clean + (change * weight.flatten(1).sign()).view_as(clean)).clamp(0, 1).to(x)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Raises NotImplementedError: attacks that need it declare the norms that they support."""
        raise NotImplementedError("Lp has no projection onto a hyperplane.")

    def _at_radius(self, change: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """The changes [n, d] at the smallest multiplier [n, 1] at which they are in the ball."""
        low = torch.full((len(like), 1), -LOG_RANGE, dtype=torch.float64, device=like.device)
        high = -low
        for _ in range(OUTER):
            middle = (low + high) / 2
            inside = _norm(change(middle.exp()), self.p)[:, None] <= self.radius
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        return change(high.exp())

    def _shrunk(self, size: Tensor, multiplier: Tensor) -> Tensor:
        """The d in [0, size] with d + m d^(p-1) = size, for sizes [n, d] and m [n, 1]."""
        low, high = torch.zeros_like(size), size
        for _ in range(INNER):
            middle = (low + high) / 2
            above = middle + multiplier * middle ** (self.p - 1) > size
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return low


def _norm(change: Tensor, p: float) -> Tensor:
    """The p-norm [n] of changes [n, d]; the largest one is taken out before powers."""
    largest = change.abs().amax(1)
    scale = torch.where(largest > 0, largest, 1)
    return largest * (change / scale[:, None]).abs().pow(p).sum(1).pow(1 / p)

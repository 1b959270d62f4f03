"""Changes that are added to the image: the points of a perturbation that many images share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.threats.norms import per_row
from bench.threats.parametric import ParametricSet, clamp_straight_through
from bench.threats.random_numbers import RandomNumbers

ROUNDING = 1e-6  # relative, of a length in float32


@dataclass(frozen=True)
class LinfDelta(ParametricSet):
    """A change of each pixel by up to `eps`; a point is the change [C, H, W] itself.

    The image is the clean one plus the change, clamped to [0, 1].
    """

    name = "linf-delta"

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """That of an image, for clean images x [n, C, H, W]."""
        return tuple(x.shape[1:])

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of changes [n, C, H, W]."""
        return clamp_straight_through(x + adv)


@dataclass(frozen=True)
class L2Delta(LinfDelta):
    """A change of the image of Euclidean length up to `eps`; a point is the change [C, H, W].

    The image is the clean one plus the change, clamped to [0, 1].
    """

    name = "l2-delta"

    def tolerance(self, pixels: int) -> float:
        """Allowance for float32 rounding of a length."""
        return 2 * ROUNDING * max(1.0, self.radius)

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """The Euclidean length [n] of changes [n, C, H, W], before the clamp."""
        return adv.flatten(1).square().sum(1).sqrt()

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform changes [n, C, H, W]: a normal direction and a length of radius u^(1/d)."""
        direction = draws.normal("point", self.shape(x))
        uniform = draws.uniform("length", (1,))[:, 0].clamp_min(1e-12)
        length = self.radius * (uniform.log() / direction[0].numel()).exp()
        return direction * per_row(length / self.distance(direction, x), direction)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The changes [n, C, H, W], shortened to the radius where they are longer."""
        length = self.distance(adv.double(), x)
        # Less than the rounding of float32 is no excess, so that a projected change stays.
        excess = length > self.radius * (1 + ROUNDING)
        factor = torch.where(excess, self.radius / length, 1).to(adv)
        return adv * per_row(factor, adv)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """The gradient [n, C, H, W] divided by its length; zero where it is zero."""
        largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_row(largest, gradient)
        length = self.distance(scaled, scaled)
        return scaled / per_row(torch.where(length > 0, length, 1), scaled)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """The change [n, C, H, W] on the sphere at which <weight, .> is largest."""
        return self.radius * self.steepest(weight, weight)

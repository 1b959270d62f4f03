"""The sparse ball: images of which at most a number of pixels are changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.threats.norms import NormBall, per_row
from bench.threats.random_numbers import RandomNumbers


@dataclass(frozen=True)
class L0(NormBall):
    """At most eps pixels differ from x; a pixel is a place of the image with all its channels.

    The set is not convex, so attacks apply only where they name it or move points by its methods.
    """

    name = "L0"

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """The number [n] of places at which images [n, C, H, W] differ, in their dtype."""
        return (adv != x).any(1).flatten(1).sum(1).to(adv.dtype)

    def tolerance(self, pixels: int) -> float:
        """None: it is a count."""
        return 0.0

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform colours [n, C, H, W] at uniformly chosen places, as many as the radius allows."""
        score = draws.uniform("places", tuple(x.shape[2:]))
        colour = draws.uniform("ball", tuple(x.shape[1:]))
        return torch.where(self._largest(score)[:, None], colour, x)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The nearest images [n, C, H, W] in L2: the largest changes are kept, clamped to the box.

        A place counts by what keeping its clamped colour gains; of equal gains the first is kept.
        """
        boxed = adv.clamp(0, 1)
        gain = ((adv - x).square() - (adv - boxed).square()).sum(1)
        return torch.where(self._largest(gain)[:, None], boxed, x)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """The gradient [n, C, H, W] divided by its largest absolute value; zero where it is."""
        largest = gradient.flatten(1).abs().amax(1)
        return gradient / per_row(torch.where(largest > 0, largest, 1), gradient)

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """A step of `rate`, in units of the box, and a projection, [n, C, H, W]."""
        length = per_row(rate, adv) if isinstance(rate, Tensor) else rate
        return self.project(adv + length * self.steepest(gradient, adv), x)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """The image [n, C, H, W] of the set at which <weight, .> is largest."""
        corner = (weight > 0).to(x)
        gain = (weight * (torch.where(weight == 0, x, corner) - x)).sum(1)
        return torch.where(self._largest(gain)[:, None] & (weight != 0), corner, x)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Raises NotImplementedError: attacks that need it declare the norms that they support."""
        raise NotImplementedError("L0 has no projection onto a hyperplane.")

    def _largest(self, score: Tensor) -> Tensor:
        """Bool [n, H, W]: the places with the largest scores [n, H, W], of equal ones the first."""
        flat = score.flatten(1)
        count = min(int(self.radius), flat.shape[1])
        first = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, first, value=True)
        return chosen.view_as(score)

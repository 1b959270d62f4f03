"""The perceptual ball: images whose fixed features are near (Laidlaw et al., arXiv:2006.12655)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.threats.norms import L2, NormBall, per_row
from bench.threats.random_numbers import (
    KeyedRandomNumbers,
    RandomNumbers,
    example_key,
)

HALVINGS = 40  # of the segment on which the edge of the set is searched
FAR = 1e4  # times the largest component of a direction: beyond every corner of the box
LEAST_RATE = 1e-6  # of change of the features along a direction


def _identity(x: Tensor) -> Tensor:
    return x.flatten(1)


def _convolutions(x: Tensor) -> Tensor:
    """The activations [n, d] of two layers of fixed random filters, each divided by sqrt(H W)."""
    parts = []
    for layer, (width, stride) in enumerate(((16, 1), (32, 2))):
        kernel = _filters(layer, width, x.shape[1]).to(x)
        x = functional.relu(functional.conv2d(x, kernel, stride=stride, padding=1))
        parts.append(x.flatten(1) / math.sqrt(x.shape[2] * x.shape[3]))
    return torch.cat(parts, 1)


@functools.cache
def _filters(layer: int, width: int, channels: int) -> Tensor:
    """Uniform filters [width, channels, 3, 3], the same on every machine; their sums vary."""
    row = torch.arange(width)
    key = example_key(layer, "perceptual filters", row, row * 0)
    unit = KeyedRandomNumbers(key, row * 0).uniform("filters", (channels, 3, 3))
    return (2 * unit.double() - 1) * math.sqrt(6 / (9 * channels))


FEATURE_MAPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity, "convolutions": _convolutions
}  # fmt: skip
"""Name -> images [n, C, H, W] to features [n, d]."""


@dataclass(frozen=True)
class PerceptualBall(NormBall):
    """||phi(adv) - phi(x)||_2 <= eps, intersected with the box, for fixed features phi.

    With the features `identity` it is the L2 ball. It is not convex in general: `project` returns
    the last point inside on the way from x, found by bisection, not the nearest one.
    """

    features: str = "convolutions"
    """`convolutions`, of a fixed random network, or `identity`."""

    name = "perceptual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features not in FEATURE_MAPS:
            raise ValueError(
                f"features are {self.features!r}; use one of {', '.join(FEATURE_MAPS)}."
            )

    def phi(self, x: Tensor) -> Tensor:
        """The features [n, d] of images [n, C, H, W]."""
        return FEATURE_MAPS[self.features](x)

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """||phi(adv) - phi(x)||_2 [n], of images [n, C, H, W]."""
        return (self.phi(adv) - self.phi(x)).square().sum(1).sqrt()

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """x [n, C, H, W] plus a normal direction, to first order of length radius u^(1/d)."""
        direction = draws.normal("ball", tuple(x.shape[1:]))
        share = (draws.uniform("radius", (1,))[:, 0].clamp_min(1e-12).log() / x[0].numel()).exp()
        length = self.radius * share / self._rate_of_change(x, direction)
        return self.project((x + per_row(length, x) * direction).clamp(0, 1), x)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """clamp(x + s (adv - x)) [n, C, H, W] with an s in [0, 1] at which it is inside."""
        clean = x.double()
        change, reference = adv.double() - clean, self.phi(clean)

        def inside(s: Tensor) -> Tensor:
            image = (clean + per_row(s, clean) * change).clamp(0, 1).to(x).double()
            return (self.phi(image) - reference).square().sum(1).sqrt() <= self.radius

        whole = torch.ones_like(clean.flatten(1)[:, 0])
        kept = inside(whole)
        low, high = torch.zeros_like(whole), whole
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            good = inside(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        found = (clean + per_row(low, clean) * change).clamp(0, 1).to(x)
        return torch.where(per_row(kept, x), adv.clamp(0, 1), found)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """g / ||g||_2 [n, C, H, W] over the pixels that can move."""
        return L2(self.eps).steepest(gradient, adv)

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """A step that changes the features by rate * radius to first order, and a projection."""
        direction = self.steepest(gradient, adv)
        length = rate * self.radius / self._rate_of_change(adv, direction)
        return self.project(adv + per_row(length, adv) * direction, x)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """clamp(x + s w) [n, C, H, W] with an s at which it is at the edge, or the box's corner."""
        largest = weight.flatten(1).abs().amax(1)
        scale = FAR / torch.where(largest > 0, largest, 1)
        return self.project(x + per_row(scale, x) * weight, x)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Raises NotImplementedError: attacks that need it declare the norms that they support."""
        raise NotImplementedError("a perceptual ball has no projection onto a hyperplane.")

    def _rate_of_change(self, adv: Tensor, direction: Tensor) -> Tensor:
        """The length [n] of the derivative of the features of images along [n, C, H, W]."""
        with torch.enable_grad():
            leaf = adv.detach().requires_grad_()
            features = self.phi(leaf)
            weight = torch.zeros_like(features, requires_grad=True)
            # The product J^T w is linear in w, and so its derivative along w is J d.
            (back,) = torch.autograd.grad(features, leaf, weight, create_graph=True)
            (change,) = torch.autograd.grad((back * direction).sum(), weight)
        return change.square().sum(1).sqrt().clamp_min(LEAST_RATE)

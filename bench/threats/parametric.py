"""Parametric perturbation sets: a point is a vector of parameters, from which an image is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bench.threats.norms import per_row
from bench.threats.random_numbers import RandomNumbers

LARGEST = 4096
"""Largest height, width or place of a patch in pixels."""


@dataclass(frozen=True)
class ParametricSet(ABC):
    """Base of sets whose points are parameters in [-1, 1], zero for the clean image.

    A subclass says how many parameters an image has (`shape`) and how they change it (`apply`).
    Its fields give the sizes of a change, so that 1 is the edge of the set for every parameter.
    `eps` scales all of them, for curves over the size of the set.
    """

    eps: Fraction = field(default=Fraction(1), kw_only=True)

    name = ""
    parametric = True
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Smallest and largest value of each field but `eps`."""

    def __post_init__(self) -> None:
        if not isinstance(self.eps, Fraction) or self.eps < 0:
            raise ValueError(f"eps is {self.eps!r}; write a fraction of at least 0: Fraction(1).")
        for name, (least, most) in self.limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} of {self.name} is {value}; use {least:g} to {most:g}.")

    @abstractmethod
    def shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of one point, for images x [n, C, H, W]."""

    @abstractmethod
    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] in [0, 1] of points [n, *shape], with a graph.

        Must be x to the bit where the point is zero. Use `clamp_straight_through`, because the
        gradient of a plain clamp is zero where it cuts.
        """

    @property
    def radius(self) -> float:
        """The largest absolute value of a parameter."""
        return float(self.eps)

    def scaled(self, factor: int) -> Self:
        """The set with `factor` times the radius."""
        return replace(self, eps=self.eps * factor)

    def drawn(self, number: int) -> Self:
        """The set with another draw of what it draws for each image; itself where it draws nothing.

        Draw 0 is that of the referee. A fitted point sees draws from 1 on.
        """
        return self

    def tolerance(self, pixels: int) -> float:
        """Allowance for float32 rounding of a parameter."""
        return 1e-6

    def start(self, x: Tensor) -> Tensor:
        """Zeros [n, *shape]: the points of the clean images."""
        return x.new_zeros(len(x), *self.shape(x))

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """The largest absolute parameter [n] of points [n, *shape]."""
        return adv.flatten(1).abs().amax(1)

    def contains(self, adv: Tensor, x: Tensor) -> Tensor:
        """Whether every parameter of points [n, *shape] is in [-eps, eps], bool [n]."""
        return self.distance(adv, x) <= self.radius + self.tolerance(1)

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform points [n, *shape]."""
        return self.radius * (2 * draws.uniform("point", self.shape(x)) - 1)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The parameters [n, *shape], clamped to [-eps, eps]."""
        return adv.clamp(-self.radius, self.radius)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """The sign of the gradient [n, *shape]."""
        return gradient.sign()

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """A step of rate * radius and a projection, [n, *shape]; `rate` is a number, or [n]."""
        step = self.radius * rate
        length = per_row(step, adv) if isinstance(step, Tensor) else step
        return self.project(adv + length * self.steepest(gradient, adv), x)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """The corner [n, *shape] of the set at which <weight, .> is largest."""
        return self.radius * weight.sign()

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Raises NotImplementedError: attacks that need it declare the norms that they support."""
        raise NotImplementedError(f"{self.name} has no projection onto a hyperplane.")


class _StraightThroughClamp(torch.autograd.Function):
    """Clamp to [0, 1] with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        return image.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def clamp_straight_through(image: Tensor) -> Tensor:
    """Images [n, C, H, W] clamped to [0, 1]; their gradient passes as if they were not.

    >>> pixel = torch.tensor([1.5], requires_grad=True)
    >>> clamped = clamp_straight_through(pixel)
    >>> clamped.sum().backward()
    >>> clamped.item(), pixel.grad.item()
    (1.0, 1.0)
    """
    clamped: Tensor = _StraightThroughClamp.apply(image)
    return clamped

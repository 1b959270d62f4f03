"""Perturbation sets: norm balls around the clean image, intersected with the pixel box."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from bench.threats.projections import (
    distance_to_box,
    hyperplane_terms,
    moved_in_box,
    project_l1,
    smallest_divisor,
    smallest_step,
)
from bench.threats.random_numbers import RandomNumbers


@runtime_checkable
class PerturbationSet(Protocol):
    """The allowed perturbed images of each clean image x [n, C, H, W].

    An attack moves points [n, ...] of the set. In a norm ball, intersected with the box [0, 1], a
    point is the image itself; in a parametric set it is a vector of parameters, such as an angle
    and a shift, from which `apply` makes the image.
    """

    name: str
    """The norm, `Linf`, `L2` or `L1`, or the name of a parametric set."""
    parametric: bool
    """Whether a point is something other than the image."""

    @property
    def eps(self) -> Fraction:
        """The radius, exactly."""

    @property
    def radius(self) -> float:
        """The radius as a float."""

    def start(self, x: Tensor) -> Tensor:
        """The points [n, ...] of the clean images."""

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of points [n, ...]; `apply(start(x), x)` is x to the bit."""

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """Distances [n] of points [n, ...] from those of the clean images, in their dtype."""

    def contains(self, adv: Tensor, x: Tensor) -> Tensor:
        """Whether points [n, ...] are in the set (up to `tolerance`), bool [n].

        In a norm ball, whether the images are also in the box.
        """

    def tolerance(self, pixels: int) -> float:
        """Allowance for float32 rounding in the distance of images with `pixels` values."""

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Random points [n, ...]: in a norm ball uniform around x, then clipped to the box."""

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """Direction [n, ...] of norm 1 with the largest product with the gradient.

        Zero where the gradient is zero, and at pixels on the edge of the box that would leave it.
        """

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The points [n, ...] of the set nearest to `adv` in L2."""

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """project(adv + rate * radius * steepest(gradient, adv), x) [n, ...].

        `rate` is a number, or [n].
        """

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """The point [n, ...] of the set at which the linear function <weight, .> is largest."""

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """The point [n, C, H, W] of the box nearest to x, in this norm, on a hyperplane.

        The hyperplane is <weight, point - x> = rise, rise [n]. Where the box does not reach it, the
        point of the box nearest to the hyperplane. The radius is not used. Norm balls only.
        """

    def scaled(self, factor: int) -> PerturbationSet:
        """The set with `factor` times the radius."""


@dataclass(frozen=True)
class NormBall:
    """Base of the norm balls.

    Raises TypeError where eps is not a Fraction, ValueError where it is negative.
    """

    eps: Fraction

    parametric = False

    def __post_init__(self) -> None:
        if not isinstance(self.eps, Fraction):
            raise TypeError(
                f"eps is {self.eps!r}; an exact fraction was expected: write Fraction(8, 255)."
            )
        if self.eps < 0:
            raise ValueError(f"eps is {self.eps}; it must not be negative.")

    @functools.cached_property
    def radius(self) -> float:
        """The radius as a float."""
        return float(self.eps)

    def scaled(self, factor: int) -> Self:
        """The ball with `factor` times the radius."""
        return replace(self, eps=self.eps * factor)

    def start(self, x: Tensor) -> Tensor:
        """The clean images [n, C, H, W]."""
        return x

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The points [n, C, H, W], which are images."""
        return adv

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """Distances [n]. Raises NotImplementedError here."""
        raise NotImplementedError

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """Directions [n, C, H, W]. Raises NotImplementedError here."""
        raise NotImplementedError

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """Projections [n, C, H, W]. Raises NotImplementedError here."""
        raise NotImplementedError

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """A step and a projection, [n, C, H, W]; `rate` is a number, or [n]."""
        step = self.radius * rate
        length = per_row(step, adv) if isinstance(step, Tensor) else step
        return self.project(adv + length * self.steepest(gradient, adv), x)

    def tolerance(self, pixels: int) -> float:
        """Allowance for float32 rounding of a distance."""
        return 1e-6

    def contains(self, adv: Tensor, x: Tensor) -> Tensor:
        """Whether images [n, C, H, W] are in ball and box, bool [n]."""
        inside = self.distance(adv, x) <= self.radius + self.tolerance(x[0].numel())
        return inside & (adv.flatten(1).amin(1) >= 0) & (adv.flatten(1).amax(1) <= 1)


@dataclass(frozen=True)
class Linf(NormBall):
    """max |adv - x| <= eps."""

    name = "Linf"

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """max |adv - x| [n], of images [n, C, H, W]."""
        return (adv - x).flatten(1).abs().amax(1)

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform in the cube around x [n, C, H, W], then clipped to the box."""
        noise = draws.uniform("ball", tuple(x.shape[1:]))
        return self.project(x + self.radius * (2 * noise - 1), x)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """The sign of the gradient [n, C, H, W] at pixels that can move."""
        return _movable(gradient, adv).sign()

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """As in `PerturbationSet`, [n, C, H, W]; pixels at the edge are left to `project`."""
        step, sign = self.radius * rate, gradient.sign()
        if isinstance(step, Tensor):
            return self.project(torch.addcmul(adv, per_row(step, adv), sign), x)
        return self.project(torch.add(adv, sign, alpha=step), x)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """Clamp images [n, C, H, W] to cube and box, which is the exact projection."""
        return torch.clamp(adv, x - self.radius, x + self.radius).clamp_(0, 1)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """Move every pixel of x [n, C, H, W] by the radius, along the sign of its weight."""
        return self.project(x + self.radius * weight.sign(), x)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Move pixels of x [n, C, H, W] with a weight by one t, or to the edge of the box."""
        uphill, room, bound = hyperplane_terms(weight, rise, x)
        gain = uphill.abs()
        t = smallest_step(gain, gain * room, bound)
        return moved_in_box(x, torch.minimum(t[:, None], room) * uphill.sign())


@dataclass(frozen=True)
class L2(NormBall):
    """||adv - x||_2 <= eps."""

    name = "L2"

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """||adv - x||_2 [n], of images [n, C, H, W]."""
        return (adv - x).flatten(1).square().sum(1).sqrt()

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform in the ball around x [n, C, H, W], then clipped to the box.

        A normal direction, and a length of radius u^(1/d).
        """
        direction = draws.normal("ball", tuple(x.shape[1:]))
        length = direction.flatten(1).square().sum(1).sqrt()
        # pow of a float32 differs in the last bit with the place in the batch; exp and log do not.
        share = (draws.uniform("radius", (1,))[:, 0].clamp_min(1e-12).log() / x[0].numel()).exp()
        return (x + per_row(self.radius * share / length, x) * direction).clamp_(0, 1)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """g / ||g||_2 [n, C, H, W] over the pixels that can move."""
        movable = _movable(gradient, adv)
        # Divided by the largest value first: the square of 1e-25 is zero in float32.
        largest = movable.flatten(1).abs().amax(1).clamp_min(torch.finfo(movable.dtype).tiny)
        movable = movable / per_row(largest, movable)
        length = movable.flatten(1).square().sum(1).sqrt()
        return movable / per_row(torch.where(length > 0, length, 1), movable)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """clamp(x + s (adv - x)) [n, C, H, W] with the largest s in [0, 1] inside the ball."""
        return _along_direction(adv.double() - x.double(), x, self.radius, at_most_one=True)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """clamp(x + s w) [n, C, H, W] with the s that reaches the sphere, or the box's corner."""
        return _along_direction(weight.double(), x, self.radius, at_most_one=False)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Move each pixel of x [n, C, H, W] by t times its weight, or to the edge of the box."""
        uphill, room, bound = hyperplane_terms(weight, rise, x)
        gain = uphill.abs()
        t = smallest_step(gain.square(), gain * room, bound)
        return moved_in_box(x, torch.minimum(t[:, None] * gain, room) * uphill.sign())


@dataclass(frozen=True)
class L1(NormBall):
    """||adv - x||_1 <= eps."""

    name = "L1"

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """||adv - x||_1 [n], of images [n, C, H, W]."""
        return (adv - x).flatten(1).abs().sum(1)

    def tolerance(self, pixels: int) -> float:
        """1e-6, and 2^-24 for each of `pixels` float32 differences that are summed."""
        return 1e-6 + pixels * 2.0**-24

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform in the ball around x [n, C, H, W] (Laplace values over a sum), then clipped."""
        uniform = draws.uniform("ball", tuple(x.shape[1:]))
        size = -torch.log(((2 * uniform - 1).abs()).clamp_min(1e-12))
        rest = -torch.log(draws.uniform("radius", (1,))[:, 0].clamp_min(1e-12))
        scale = self.radius / (size.flatten(1).sum(1) + rest)
        return (x + per_row(scale, x) * size * (uniform - 0.5).sign()).clamp_(0, 1)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """One pixel of [n, C, H, W]: the largest |g_i| among those that can move."""
        movable = _movable(gradient, adv).flatten(1)
        best = movable.abs().argmax(1, keepdim=True)
        chosen = torch.zeros_like(movable).scatter_(1, best, movable.gather(1, best).sign())
        return chosen.view_as(gradient)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """clamp(x + soft(adv - x, threshold)) [n, C, H, W], the least threshold inside the ball."""
        return project_l1(adv, x, self.radius)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """Move the pixels of x [n, C, H, W] with the largest weights to the edge of the box.

        Until the radius is used up.
        """
        flat = weight.flatten(1)
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        room = distance_to_box(weight, x).gather(1, order)
        before = room.cumsum(1) - room
        spent = torch.minimum((self.radius - before).clamp_min_(0), room)
        change = torch.zeros_like(flat).scatter_(1, order, spent) * flat.sign()
        return (x + change.view_as(x)).clamp_(0, 1)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Move the pixels of x [n, C, H, W] with the largest weights to the edge of the box.

        Until the hyperplane is reached.
        """
        uphill, room, bound = hyperplane_terms(weight, rise, x)
        gain, order = uphill.abs().sort(dim=1, descending=True, stable=True)
        room = room.gather(1, order)
        most = gain * room
        before = most.cumsum(1) - most
        share = (bound[:, None] - before).clamp_min_(0) / gain.clamp_min(smallest_divisor(gain))
        change = torch.minimum(share, room).masked_fill(gain == 0, 0)
        return moved_in_box(x, torch.zeros_like(change).scatter_(1, order, change) * uphill.sign())


def per_row(value: Tensor, like: Tensor | None = None) -> Tensor:
    """Reshape values [n] to multiply `like` [n, ...] row by row; images [n, C, H, W] by default.

    >>> per_row(torch.ones(5)).shape
    torch.Size([5, 1, 1, 1])
    """
    return value.view(-1, *[1] * (3 if like is None else like.dim() - 1))


def _movable(gradient: Tensor, adv: Tensor) -> Tensor:
    """The gradient [n, C, H, W], zero where a pixel on the edge of the box would leave it."""
    stuck = ((gradient > 0) & (adv >= 1)) | ((gradient < 0) & (adv <= 0))
    return gradient.masked_fill(stuck, 0)


def _along_direction(direction: Tensor, x: Tensor, radius: float, *, at_most_one: bool) -> Tensor:
    """clamp(x + s d) [n, C, H, W] with the largest s >= 0 in the L2 ball; d in float64.

    ||clamp(x + s d) - x||^2 = sum min(t d^2, room^2) with t = s^2.
    """
    square = direction.flatten(1).square()
    cap = distance_to_box(direction, x.double()).square()
    bound = torch.full_like(square[:, 0], radius * radius)
    t = smallest_step(square, cap, bound)
    if at_most_one:
        inside = torch.minimum(square, cap).sum(1) <= bound
        t = torch.where(inside, torch.ones_like(t), t.clamp_max(1))
    return moved_in_box(x, t.sqrt()[:, None] * direction.flatten(1))

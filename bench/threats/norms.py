"""Perturbation sets: norm balls around the clean image, intersected with the pixel box."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from bench.threats.projections import (
    ascent_terms,
    nonzero_slope,
    room_along,
    shifted,
    smallest_step,
)
from bench.threats.random_numbers import RandomNumbers

BISECTION = 40  # halvings: past the resolution of float32


@runtime_checkable
class PerturbationSet(Protocol):
    """What may be done to an image."""

    name: str
    """The norm, for people: `Linf`, `L2`, `L1`."""

    @property
    def eps(self) -> Fraction:
        """The radius, exactly."""

    @property
    def radius(self) -> float:
        """The radius as a float."""

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """[n], in the dtype of the images."""

    def contains(self, adv: Tensor, x: Tensor) -> Tensor:
        """[n] bool: inside ball (up to `tolerance`) and box (exactly)."""

    def tolerance(self, pixels: int) -> float:
        """How far float32 rounding may carry an honest image of so many pixels."""

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """A random point: uniform in the ball, then clipped to the box."""

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """The direction of norm 1 that gains most; zero where the gradient is zero.

        Nothing is spent on a pixel that cannot move: one that stands at the edge of the box
        and would be pushed over it.
        """

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point (in L2) of ball and box together."""

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """project(adv + rate radius steepest(gradient, adv), x); `rate` is one number, or [n]."""

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """The point of ball and box at which the linear function `weight` is largest."""

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the box, in this norm, with <weight, point - x> = rise [n].

        Where no point of the box rises or falls so far, the one that goes farthest. The radius
        plays no part.
        """

    def scaled(self, factor: int) -> PerturbationSet:
        """The set of `factor` times the radius, for a search that begins further out."""


@dataclass(frozen=True)
class _Norm:
    """What the three norms share."""

    eps: Fraction

    def __post_init__(self) -> None:
        if not isinstance(self.eps, Fraction):
            raise TypeError(
                f"eps came as {self.eps!r}; a radius is an exact fraction: write Fraction(8, 255)."
            )
        if self.eps < 0:
            raise ValueError(f"eps came as {self.eps}; a radius is not negative.")

    @functools.cached_property
    def radius(self) -> float:
        return float(self.eps)

    def scaled(self, factor: int) -> Self:
        return replace(self, eps=self.eps * factor)

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        raise NotImplementedError

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        step = self.radius * rate
        length = per_row(step, adv) if isinstance(step, Tensor) else step
        return self.project(adv + length * self.steepest(gradient, adv), x)

    def tolerance(self, pixels: int) -> float:
        return 1e-6

    def contains(self, adv: Tensor, x: Tensor) -> Tensor:
        inside = self.distance(adv, x) <= self.radius + self.tolerance(x[0].numel())
        return inside & (adv.flatten(1).amin(1) >= 0) & (adv.flatten(1).amax(1) <= 1)


@dataclass(frozen=True)
class Linf(_Norm):
    """max |adv - x| <= eps."""

    name = "Linf"

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """Largest change of any pixel."""
        return (adv - x).flatten(1).abs().amax(1)

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform in the cube, then clipped to the box."""
        noise = draws.uniform("ball", tuple(x.shape[1:]))
        return self.project(x + self.radius * (2 * noise - 1), x)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """The sign of the gradient, <g, sign g> = |g|_1, over the pixels that can move."""
        return _movable(gradient, adv).sign()

    def ascend(self, adv: Tensor, gradient: Tensor, rate: float | Tensor, x: Tensor) -> Tensor:
        """A pixel that cannot move is not looked for: the projection puts it back."""
        step, sign = self.radius * rate, gradient.sign()
        if isinstance(step, Tensor):
            return self.project(torch.addcmul(adv, per_row(step, adv), sign), x)
        return self.project(torch.add(adv, sign, alpha=step), x)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """Two clamps: for a cube and a box that is the exact projection."""
        return torch.clamp(adv, x - self.radius, x + self.radius).clamp_(0, 1)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """Every pixel to its end."""
        return self.project(x + self.radius * weight.sign(), x)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Every pixel with a weight moves by t, or as far as the box lets it."""
        uphill, room, bound = ascent_terms(weight, rise, x)
        gain = uphill.abs()
        t = smallest_step(gain, gain * room, bound)
        return shifted(x, torch.minimum(t[:, None], room) * uphill.sign())


@dataclass(frozen=True)
class L2(_Norm):
    """||adv - x||_2 <= eps."""

    name = "L2"

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """Euclidean."""
        return (adv - x).flatten(1).square().sum(1).sqrt()

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform in the ball (a normal direction, radius u^(1/d)), then clipped to the box."""
        direction = draws.normal("ball", tuple(x.shape[1:]))
        length = direction.flatten(1).square().sum(1).sqrt()
        # pow of a float32 differs in the last bit with the place in the batch; exp and log do not.
        share = (draws.uniform("radius", (1,))[:, 0].clamp_min(1e-12).log() / x[0].numel()).exp()
        return (x + per_row(self.radius * share / length, x) * direction).clamp_(0, 1)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """g / ||g||_2 over the pixels that can move."""
        movable = _movable(gradient, adv)
        # Divided by the largest entry first: the square of 1e-25 is zero in float32.
        largest = movable.flatten(1).abs().amax(1).clamp_min(torch.finfo(movable.dtype).tiny)
        movable = movable / per_row(largest, movable)
        length = movable.flatten(1).square().sum(1).sqrt()
        return movable / per_row(torch.where(length > 0, length, 1), movable)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """clamp(x + s (adv - x)) with the largest s in [0, 1] that stays in the ball."""
        return _along(adv.double() - x.double(), x, self.radius, at_most_one=True)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """clamp(x + s w) with the s that reaches the ball, or every corner of the box."""
        return _along(weight.double(), x, self.radius, at_most_one=False)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """Every pixel moves by t times its weight, or as far as the box lets it."""
        uphill, room, bound = ascent_terms(weight, rise, x)
        gain = uphill.abs()
        t = smallest_step(gain.square(), gain * room, bound)
        return shifted(x, torch.minimum(t[:, None] * gain, room) * uphill.sign())


@dataclass(frozen=True)
class L1(_Norm):
    """||adv - x||_1 <= eps."""

    name = "L1"

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        """Sum of the absolute changes."""
        return (adv - x).flatten(1).abs().sum(1)

    def tolerance(self, pixels: int) -> float:
        """An honest sum of `pixels` float32 differences may be off by 2^-24 each."""
        return 1e-6 + pixels * 2.0**-24

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """Uniform in the ball (Laplace over its sum and one exponential), then clipped."""
        uniform = draws.uniform("ball", tuple(x.shape[1:]))
        size = -torch.log(((2 * uniform - 1).abs()).clamp_min(1e-12))
        rest = -torch.log(draws.uniform("radius", (1,))[:, 0].clamp_min(1e-12))
        scale = self.radius / (size.flatten(1).sum(1) + rest)
        return (x + per_row(scale, x) * size * (uniform - 0.5).sign()).clamp_(0, 1)

    def steepest(self, gradient: Tensor, adv: Tensor) -> Tensor:
        """One coordinate: the largest |g_i| among the pixels that can move."""
        movable = _movable(gradient, adv).flatten(1)
        best = movable.abs().argmax(1, keepdim=True)
        chosen = torch.zeros_like(movable).scatter_(1, best, movable.gather(1, best).sign())
        return chosen.view_as(gradient)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """clamp(x + soft(adv - x, threshold)) with the least threshold that stays in the ball."""
        boxed = adv.clamp(0, 1)
        reach = room_along(adv - x, x)
        size = (adv - x).flatten(1).abs()
        low = torch.zeros_like(size[:, 0])
        high = size.amax(1)
        for _ in range(BISECTION):
            middle = (low + high) / 2
            norm = torch.minimum((size - middle[:, None]).clamp_min_(0), reach).sum(1)
            outside = norm > self.radius
            low = torch.where(outside, middle, low)
            high = torch.where(outside, high, middle)
        kept = torch.minimum((size - high[:, None]).clamp_min_(0), reach)
        moved = (x + kept.view_as(x) * (adv - x).sign()).clamp_(0, 1)
        inside = self.distance(boxed, x) <= self.radius
        return torch.where(per_row(inside, x), boxed, moved)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """Fill the best pixels, each up to its room, until the budget is spent."""
        flat = weight.flatten(1)
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        room = room_along(weight, x).gather(1, order)
        before = room.cumsum(1) - room
        spent = torch.minimum((self.radius - before).clamp_min_(0), room)
        change = torch.zeros_like(flat).scatter_(1, order, spent) * flat.sign()
        return (x + change.view_as(x)).clamp_(0, 1)

    def onto(self, weight: Tensor, rise: Tensor, x: Tensor) -> Tensor:
        """The heaviest pixels, each as far as the box lets it, until the rise is reached."""
        uphill, room, bound = ascent_terms(weight, rise, x)
        gain, order = uphill.abs().sort(dim=1, descending=True, stable=True)
        room = room.gather(1, order)
        most = gain * room
        before = most.cumsum(1) - most
        share = (bound[:, None] - before).clamp_min_(0) / gain.clamp_min(nonzero_slope(gain))
        change = torch.minimum(share, room).masked_fill(gain == 0, 0)
        return shifted(x, torch.zeros_like(change).scatter_(1, order, change) * uphill.sign())


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """[n] shaped so that it multiplies [n, ...] row by row."""
    return value.view(-1, *[1] * (like.dim() - 1))


def _movable(gradient: Tensor, adv: Tensor) -> Tensor:
    """The gradient, zero where the pixel stands at the edge it would be pushed over."""
    stuck = ((gradient > 0) & (adv >= 1)) | ((gradient < 0) & (adv <= 0))
    return gradient.masked_fill(stuck, 0)


def _along(direction: Tensor, x: Tensor, radius: float, *, at_most_one: bool) -> Tensor:
    """clamp(x + s d) with s >= 0 as large as the L2 ball allows; d in float64.

    ||clamp(x + s d) - x||^2 = sum min(t d^2, room^2) with t = s^2.
    """
    square = direction.flatten(1).square()
    cap = room_along(direction, x.double()).square()
    bound = torch.full_like(square[:, 0], radius * radius)
    t = smallest_step(square, cap, bound)
    if at_most_one:
        inside = torch.minimum(square, cap).sum(1) <= bound
        t = torch.where(inside, torch.ones_like(t), t.clamp_max(1))
    return shifted(x, t.sqrt()[:, None] * direction.flatten(1))

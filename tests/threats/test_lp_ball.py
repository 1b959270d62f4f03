"""Balls of the p-norm: the exact projection, its limits, and the steepest direction."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.threats.lp_ball import LpBall
from bench.threats.norms import L1, L2, Linf
from tests.threats.test_parametric import draws, random_images

POWERS = (1.1, 1.5, 2.0, 3.0, 8.0)
every_p = pytest.mark.parametrize("p", POWERS)


def pair(seed: int, n: int = 24) -> tuple[Tensor, Tensor]:
    """Images [n, 2, 4, 3] of which some pixels are black or white, and points around them."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.5 * torch.rand(n, 2, 4, 3, generator=generator) - 0.25).clamp(0, 1)
    return x, x + torch.randn(x.shape, generator=generator)


def gap(a: Tensor, b: Tensor) -> Tensor:
    """The Euclidean distance [n] of points [n, ...]."""
    return (a.double() - b.double()).flatten(1).square().sum(1).sqrt()


@pytest.mark.row("G07")
@every_p
def test_the_projection_is_feasible_idempotent_and_not_expansive(p: float) -> None:
    ball = LpBall(Fraction(1, 2), p)
    x, far = pair(0)
    other = far + 0.3 * torch.randn(far.shape, generator=torch.Generator().manual_seed(5))
    once, second = ball.project(far, x), ball.project(other, x)
    assert ball.contains(once.double(), x.double()).all()
    assert (ball.distance(once, x) > 0.4999).all(), "points outside land on the edge"
    assert gap(ball.project(once, x), once).max() < 1e-6
    assert (gap(once, second) <= gap(far, other) + 1e-6).all()
    inside = x + 0.1 * (once - x)
    assert torch.equal(ball.project(inside, x), inside.clamp(0, 1))


@pytest.mark.row("G07")
@every_p
def test_no_point_of_the_set_is_nearer_than_the_projection(p: float) -> None:
    """<far - projection, point - projection> <= 0 for every point of a convex set."""
    ball = LpBall(Fraction(1, 2), p)
    x, far = pair(1)
    nearest = ball.project(far, x).double()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        mixed = torch.randn(x.shape, generator=generator)
        for point in (ball.farthest(mixed, x), ball.project(nearest.float() + 0.2 * mixed, x)):
            product = ((far.double() - nearest) * (point.double() - nearest)).flatten(1).sum(1)
            assert product.max() < 1e-5


@pytest.mark.row("G07")
def test_p_of_two_is_the_euclidean_ball_and_the_ends_come_near_l1_and_linf() -> None:
    x, far = pair(2)
    two, euclid = LpBall(Fraction(1, 2), 2.0), L2(Fraction(1, 2))
    assert torch.allclose(two.project(far, x), euclid.project(far, x), atol=1e-6)
    assert torch.allclose(two.steepest(far, x), euclid.steepest(far, x), atol=1e-6)
    assert torch.allclose(two.farthest(far, x), euclid.farthest(far, x), atol=1e-6)
    assert torch.allclose(two.distance(far, x), euclid.distance(far, x))
    high, cube = LpBall(Fraction(1, 5), 50.0), Linf(Fraction(1, 5))
    assert (high.project(far, x) - cube.project(far, x)).abs().max() < 0.03
    low, cross = LpBall(Fraction(1), 1.05), L1(Fraction(1))
    assert gap(low.project(far, x), cross.project(far, x)).max() < 0.15


@pytest.mark.row("G07")
@every_p
def test_the_steepest_direction_reaches_the_dual_norm(p: float) -> None:
    ball, x = LpBall(Fraction(1), p), torch.full((16, 1, 3, 3), 0.5)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    direction = ball.steepest(gradient, x)
    dual = gradient.flatten(1).double().norm(p / (p - 1), dim=1).float()
    assert torch.allclose((direction * gradient).flatten(1).sum(1), dual, rtol=1e-4)
    assert torch.allclose(ball.distance(x + direction, x), torch.ones(16), rtol=1e-4)
    free = LpBall(Fraction(1, 10), p)
    reached = ((free.farthest(gradient, x) - x) * gradient).flatten(1).sum(1)
    assert torch.allclose(reached, 0.1 * dual, rtol=1e-4)


def test_samples_lie_in_the_ball_and_reach_its_edge() -> None:
    ball, x = LpBall(Fraction(1, 2), 3.0), random_images((1, 3, 3), 200) * 0 + 0.5
    points = ball.sample(x, draws(200))
    assert ball.contains(points, x).all() and (ball.distance(points, x) > 0.45).float().mean() > 0.3


def test_another_p_is_refused() -> None:
    for p in (1.0, float("nan"), 51.0):
        with pytest.raises(ValueError, match="p of Lp is"):
            LpBall(Fraction(1), p)

"""Membership in norm balls: radius, tolerance, box, and the radii that are refused."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch

from bench.threats.norms import L1, L2, Linf, PerturbationSet

NORMS: list[Callable[[Fraction], PerturbationSet]] = [Linf, L2, L1]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=["Linf", "L2", "L1"])


@every_norm
def test_contains_ends_at_the_radius_and_at_the_box(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    ball = norm(Fraction(1, 4))
    x = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    unit = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).view(1, 1, 1, 4)
    assert ball.contains(x + 0.25 * unit, x).item()
    assert ball.contains(x + (0.25 + 5e-7) * unit, x).item()
    assert not ball.contains(x + (0.25 + 5e-6) * unit, x).item()
    edge = torch.ones_like(x)
    assert not ball.contains(edge + 1e-12 * unit, edge).item()
    assert not ball.contains(0 * edge - 1e-12 * unit, 0 * edge).item()
    assert not ball.contains(edge * torch.nan, edge).item()


@every_norm
def test_the_end_of_the_tolerance_belongs_to_the_ball(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    """The largest admissible distance, exactly, and the next one in float64."""
    ball = norm(Fraction(1, 4))
    x = torch.zeros((2, 1, 1, 4), dtype=torch.float64)
    end = torch.tensor(ball.radius + ball.tolerance(4), dtype=torch.float64)
    adv = x.clone()
    adv[:, 0, 0, 0] = torch.stack([end, torch.nextafter(end, end + 1)])
    assert ball.distance(adv, x)[0] == end
    assert ball.contains(adv, x).tolist() == [True, False]


@every_norm
def test_a_scaled_set_has_a_multiple_of_the_exact_radius(
    norm: Callable[[Fraction], PerturbationSet],
) -> None:
    eps = Fraction(1, 3)
    assert norm(eps).scaled(3) == norm(Fraction(1))
    assert norm(eps).scaled(1) == norm(eps)


def test_only_the_l1_tolerance_grows_with_the_image() -> None:
    assert L1(Fraction(2)).tolerance(1024) == 1e-6 + 1024 / 2**24
    assert Linf(Fraction(2)).tolerance(1024) == L2(Fraction(2)).tolerance(1024) == 1e-6


@every_norm
@pytest.mark.parametrize("eps", [8 / 255, 1, "1/2"])
def test_a_radius_that_is_not_a_fraction_is_refused(norm: Callable[..., Any], eps: object) -> None:
    with pytest.raises(TypeError, match=r"write Fraction\(8, 255\)"):
        norm(eps)


@every_norm
def test_a_negative_radius_is_refused(norm: Callable[[Fraction], PerturbationSet]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        norm(Fraction(-1, 255))

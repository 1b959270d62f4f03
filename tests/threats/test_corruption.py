"""The set of corrupted images: single points, of which nothing lies between two."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.core.corruptions import CORRUPTIONS
from bench.threats.corrupted_images import corrupted
from bench.threats.corruption import Corruption
from tests.threats.test_parametric import SIZES, draws, random_images

SET = Corruption()


def point(kind: str, severity: float, n: int = 1) -> Tensor:
    """The point [n, 7] of a corruption."""
    found = torch.zeros(n, len(CORRUPTIONS))
    found[:, CORRUPTIONS.index(kind)] = severity / 5
    return found


@pytest.mark.row("G17")
@pytest.mark.parametrize("shape", SIZES)
def test_severity_zero_is_the_clean_image_to_the_bit(shape: tuple[int, ...]) -> None:
    x = random_images(shape)
    assert torch.equal(SET.apply(SET.start(x), x), x)
    assert SET.contains(SET.start(x), x).all()


def test_a_point_gives_its_corruption_in_a_mixed_batch() -> None:
    x = random_images((3, 16, 16), 4)
    points = torch.cat([point("fog", 2), point("jpeg", 5), SET.start(x[:1]), point("fog", 3)])
    found = SET.apply(points, x)
    expected = [corrupted(x[:1], "fog", 2), corrupted(x[1:2], "jpeg", 5), x[2:3]]
    assert torch.equal(found, torch.cat([*expected, corrupted(x[3:], "fog", 3)]))


def test_only_one_severity_of_one_corruption_is_inside() -> None:
    x = random_images((1, 8, 8), 7)
    both = point("fog", 1) + point("rain", 1)
    beyond, between, negative = point("fog", 6), point("fog", 2.5), point("fog", -1)
    nothing = torch.full((1, len(CORRUPTIONS)), torch.nan)
    points = torch.cat(
        [point("fog", 1), point("rain", 5), both, beyond, between, negative, nothing]
    )
    assert SET.contains(points, x).tolist() == [True, True, *[False] * 5]
    assert SET.contains(points.double(), x.double()).tolist() == [True, True, *[False] * 5]
    three = Corruption(eps=Fraction(3, 5))
    limits = torch.cat([point("fog", 3), point("fog", 4)])
    assert three.contains(limits, x[:2]).tolist() == [True, False]


def test_points_are_drawn_and_projected_into_the_set() -> None:
    x = random_images((1, 8, 8), 400)
    for ball, most in (
        (SET, 5),
        (Corruption(eps=Fraction(2, 5)), 2),
        (Corruption(eps=Fraction(0)), 0),
    ):
        points = ball.sample(x, draws(400))
        assert ball.contains(points, x).all()
        reached = {round(float(value) * 5) for value in points.amax(1)}
        assert reached == (set(range(1, most + 1)) or {0})
        assert most == 0 or set(points.argmax(1).tolist()) == set(range(len(CORRUPTIONS)))
        far = 3 * torch.randn(400, len(CORRUPTIONS), generator=torch.Generator().manual_seed(1))
        inside = ball.project(far, x)
        assert ball.contains(inside, x).all() and torch.equal(ball.project(inside, x), inside)
        chosen = inside.amax(1) > 0
        assert torch.equal(inside.argmax(1)[chosen], far.argmax(1)[chosen])
        assert torch.equal(chosen, (far.amax(1) >= 0.1) & (most > 0))
    near = point("blur", 3.4, 400) + 0.1 * point("fog", 3, 400)
    assert torch.allclose(SET.project(near, x), point("blur", 3, 400))


def test_the_farthest_point_is_the_largest_severity_of_the_best_corruption() -> None:
    x = random_images((1, 8, 8), 2)
    weight = torch.stack([torch.linspace(-1, 1, 7), torch.full((7,), -1.0)])
    assert torch.equal(
        SET.farthest(weight, x), torch.cat([point(CORRUPTIONS[-1], 5), SET.start(x[:1])])
    )


def test_the_gradient_at_a_point_is_zero() -> None:
    x = random_images((1, 8, 8), 2)
    leaf = point("blur", 3, 2).requires_grad_()
    torch.autograd.backward(SET.apply(leaf, x).sum())
    assert leaf.grad is not None and torch.equal(leaf.grad, torch.zeros(2, 7))

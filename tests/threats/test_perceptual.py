"""The perceptual ball: distance of features, the Euclidean special case, and PGD in it."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bench.engine.problem import attack_once
from bench.plugin import Attack, Traits
from bench.registry.registry import Registry
from bench.threats.norms import L2
from bench.threats.perceptual import FEATURE_MAPS, PerceptualBall
from tests.fixtures.known_models import digits, small_cnn
from tests.threats.test_parametric import draws, random_images

EPS = Fraction(3, 4)
IDENTITY = PerceptualBall(EPS, "identity")
BALL = PerceptualBall(Fraction(1, 4))


def attack(name: str) -> Attack:
    """A registered attack."""
    found: Attack = Registry.without_submissions().find("attack", name).value
    return found


@pytest.mark.row("G08")
@pytest.mark.parametrize("features", FEATURE_MAPS)
def test_the_distance_is_zero_exactly_where_the_features_are_the_same(features: str) -> None:
    ball, x = PerceptualBall(EPS, features), random_images((3, 12, 12), 6)
    assert torch.equal(ball.distance(x, x), torch.zeros(6))
    moved = x.clone()
    moved[:, 0, 5, 5] = 1 - moved[:, 0, 5, 5]
    same = (ball.phi(moved) == ball.phi(x)).all(1)
    assert torch.equal(ball.distance(moved, x) == 0, same) and not same.any()
    change = ball.phi(moved) - ball.phi(x)
    assert torch.allclose(ball.distance(moved, x), change.norm(dim=1))


@pytest.mark.row("G08")
def test_with_the_identity_it_is_the_euclidean_ball() -> None:
    x = random_images((2, 6, 6), 40)
    generator = torch.Generator().manual_seed(1)
    far = x + 0.4 * torch.randn(x.shape, generator=generator)
    ball = L2(EPS)
    assert torch.allclose(IDENTITY.distance(far, x), ball.distance(far, x))
    assert torch.allclose(IDENTITY.project(far, x), ball.project(far, x), atol=1e-6)
    assert torch.allclose(IDENTITY.sample(x, draws(40)), ball.sample(x, draws(40)), atol=1e-6)
    assert torch.allclose(IDENTITY.farthest(far, x), ball.farthest(far, x), atol=1e-6)
    step, same = (one.ascend(x, far, 0.3, x) for one in (IDENTITY, ball))
    assert torch.allclose(step, same, atol=1e-6)


@pytest.mark.row("G08")
def test_pgd_with_the_identity_is_pgd_in_l2() -> None:
    x, _ = digits(64)
    y, row = small_cnn()(x).argmax(1), torch.arange(64)
    found, known = (
        attack_once(attack("pgd"), small_cnn(), x, y, ball, seed=0, example=row)
        for ball in (IDENTITY, L2(EPS))
    )
    assert (found - known).abs().flatten(1).amax(1).median() < 1e-4
    labels = [small_cnn()(one).argmax(1) for one in (found, known)]
    assert (labels[0] == labels[1]).float().mean() > 0.95 and (labels[1] != y).any()


@pytest.mark.row("G08")
def test_pgd_runs_in_the_set_and_beats_random_points() -> None:
    x, _ = digits(64)
    y, row = small_cnn()(x).argmax(1), torch.arange(64)
    broken, ball = [], BALL.scaled(2)
    for name in ("pgd", "random"):
        adv = attack_once(attack(name), small_cnn(), x, y, ball, seed=0, example=row)
        assert ball.contains(adv.double(), x.double()).all()
        broken.append(int((small_cnn()(adv).argmax(1) != y).sum()))
    assert broken[0] > 2 * broken[1] and broken[0] > 10, broken


def test_the_projection_is_feasible_idempotent_and_at_the_edge() -> None:
    x = random_images((3, 8, 8), 20)
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    once = BALL.project(far, x)
    assert BALL.contains(once.double(), x.double()).all()
    assert (BALL.distance(once.double(), x.double()) > 0.2499).all()
    assert torch.equal(BALL.project(once, x), once) and torch.equal(BALL.project(x, x), x)
    assert torch.equal(BALL.project(far[3:5], x[3:5]), once[3:5])
    corner = BALL.farthest(far - x, x)
    assert torch.allclose(BALL.distance(corner, x), torch.full((20,), 0.25), atol=1e-4)


def test_attacks_apply_that_move_points_alone() -> None:
    assert Traits.of(attack("pgd")).why_not_in(BALL) == ""
    assert "convex" in Traits.of(attack("deepfool")).why_not_in(BALL)
    with pytest.raises(ValueError, match="features are 'vgg'; use one of"):
        PerceptualBall(EPS, "vgg")

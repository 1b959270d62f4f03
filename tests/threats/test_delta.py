"""Changes that are added to images."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bench.core.outcomes import Verdict
from bench.threats.delta import L2Delta, LinfDelta
from bench.threats.norms import L2, Linf, PerturbationSet
from bench.threats.parametric import ParametricSet
from plugins.attacks.pgd import PGD
from tests.engine.single_run import SingleRun
from tests.fixtures.known_models import gaussian, small_cnn
from tests.threats.test_parametric import draws, random_images

SETS = [LinfDelta(eps=Fraction(1, 5)), L2Delta(eps=Fraction(3, 2)), L2Delta(eps=Fraction(4))]


@pytest.mark.parametrize("ball", SETS, ids=lambda ball: f"{ball.name} {ball.eps}")
def test_changes_are_sampled_and_projected_into_the_set(ball: ParametricSet) -> None:
    x = random_images((3, 8, 8), 64)
    points = ball.sample(x, draws(64))
    assert points.shape == x.shape and ball.contains(points, x).all()
    assert float(ball.distance(points, x).max()) > 0.9 * ball.radius
    far = 5 * gaussian(64, 3, 8, 8)
    assert not ball.contains(far, x).any()
    inside = ball.project(far, x)
    assert ball.contains(inside, x).all() and torch.equal(ball.project(inside, x), inside)
    other = ball.project(far + 0.1 * gaussian(64, 3, 8, 8, seed=1), x)
    apart = (inside - other).flatten(1).norm(dim=1)
    assert (apart <= (0.1 * gaussian(64, 3, 8, 8, seed=1)).flatten(1).norm(dim=1) + 1e-5).all()


@pytest.mark.parametrize("ball", SETS, ids=lambda ball: f"{ball.name} {ball.eps}")
def test_the_farthest_change_has_the_largest_product(ball: ParametricSet) -> None:
    x = random_images((1, 8, 8), 16)
    weight = gaussian(16, 1, 8, 8)
    best = (ball.farthest(weight, x) * weight).flatten(1).sum(1)
    assert ball.contains(ball.farthest(weight, x), x).all()
    for seed in range(5):
        other = ball.project(gaussian(16, 1, 8, 8, seed=seed + 1), x)
        assert ((other * weight).flatten(1).sum(1) <= best + 1e-4).all()
    zero = torch.zeros_like(weight)
    assert torch.equal(ball.steepest(zero, zero), zero)


@pytest.mark.row("G10")
def test_an_attack_breaks_as_many_as_in_the_norm_ball() -> None:
    sets = (LinfDelta(eps=Fraction(1, 5)), Linf(Fraction(1, 5)))
    broken = [broken_by_pgd(ball) for ball in sets]
    assert abs(broken[0] - broken[1]) <= 0.02 * 200, broken


def test_in_l2_the_length_that_the_clamp_cuts_is_lost() -> None:
    """The ball's projection uses that length again, so an attack breaks no more than there."""
    delta, norm = broken_by_pgd(L2Delta(eps=Fraction(1))), broken_by_pgd(L2(Fraction(1)))
    assert 0.9 * norm <= delta <= norm, (delta, norm)


def broken_by_pgd(ball: PerturbationSet) -> int:
    """Broken examples of 200 digits."""
    run = SingleRun(PGD(), ball, model=small_cnn(), count=200).run()
    return int((run.outcomes.verdict == Verdict.BROKEN).sum())

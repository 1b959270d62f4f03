"""The sparse ball, and what holds for the projections of all norm balls."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
import torch

from bench.core.outcomes import Verdict
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.sparse import L0
from bench.threats.threat_model import ThreatModel
from plugins.attacks.one_pixel import OnePixel
from plugins.attacks.pgd import PGD
from plugins.attacks.random_noise import RandomNoise
from tests.engine.single_run import SingleRun
from tests.fixtures.known_models import digits, gaussian, small_cnn
from tests.threats.test_parametric import draws, random_images

BALLS: list[PerturbationSet] = [
    Linf(Fraction(1, 5)), L2(Fraction(1)), L1(Fraction(2)), L0(Fraction(3)),
]  # fmt: skip


@pytest.mark.row("G07")
@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.name)
def test_a_projection_is_feasible_idempotent_and_non_expansive_where_convex(
    ball: PerturbationSet,
) -> None:
    x = random_images((2, 4, 5), 200)
    one = x + gaussian(200, 2, 4, 5)
    two = one + torch.linspace(0.01, 1, 200)[:, None, None, None] * gaussian(200, 2, 4, 5, seed=1)
    first, second = ball.project(one, x), ball.project(two, x)
    assert ball.contains(first.double(), x.double()).all()
    assert torch.allclose(ball.project(first, x), first, atol=2e-6)
    apart = (first - second).flatten(1).norm(dim=1)
    before = (one - two).flatten(1).norm(dim=1)
    expands = apart > before * (1 + 1e-5) + 1e-6
    assert expands.any() if ball.name == "L0" else not expands.any()


@pytest.mark.row("G07")
def test_the_sparse_projection_is_the_nearest_of_all_choices_of_places() -> None:
    x, adv = random_images((2, 2, 3), 40), random_images((2, 2, 3), 40) + gaussian(40, 2, 2, 3)
    ball = L0(Fraction(2))
    found = (ball.project(adv, x) - adv).flatten(1).square().sum(1)
    best = torch.full((40,), torch.inf)
    for places in combinations(range(6), 2):
        kept = torch.zeros(6, dtype=torch.bool)
        kept[list(places)] = True
        image = torch.where(kept.view(1, 1, 2, 3), adv.clamp(0, 1), x)
        best = torch.minimum(best, (image - adv).flatten(1).square().sum(1))
    assert torch.allclose(found, best, atol=1e-5)


def test_a_place_counts_once_for_all_its_channels() -> None:
    x = random_images((3, 4, 4), 2)
    adv = x.clone()
    adv[0, :, 1, 2] = 0.0
    adv[1, 0, 0, 0] = 1 - adv[1, 0, 0, 0]
    adv[1, 2, 3, 3] = 1 - adv[1, 2, 3, 3]
    assert L0(Fraction(1)).distance(adv, x).tolist() == [1, 2]
    assert L0(Fraction(1)).contains(adv, x).tolist() == [True, False]
    sampled = L0(Fraction(3)).sample(random_images((3, 4, 4), 64), draws(64))
    assert (L0(Fraction(3)).distance(sampled, random_images((3, 4, 4), 64)) == 3).all()


def test_the_farthest_image_has_the_largest_product() -> None:
    x, weight, ball = random_images((1, 2, 3), 30), gaussian(30, 1, 2, 3), L0(Fraction(2))
    best = ((ball.farthest(weight, x) - x) * weight).flatten(1).sum(1)
    gains = torch.where(weight > 0, weight * (1 - x), -weight * x).flatten(1)
    assert torch.allclose(best, gains.topk(2, dim=1).values.sum(1), atol=1e-6)
    assert ball.contains(ball.farthest(weight, x), x).all()


@pytest.mark.row("P09")
def test_the_exhaustive_search_equals_brute_force_and_bounds_other_searches() -> None:
    model, ball = small_cnn(), L0(Fraction(1))
    x, y = digits(200)
    found = SingleRun(OnePixel(), ball, model=model, count=200).run()
    broken = model(x).argmax(1) != y
    for place in range(64):
        for colour in (0.0, 1.0):
            image = x.clone()
            image.flatten(1)[:, place] = colour
            broken |= model(image).argmax(1) != y
    mine = torch.from_numpy(found.outcomes.verdict == Verdict.BROKEN)
    assert torch.equal(mine, broken) and 0 < int(broken.sum()) < 200
    changed = (found.images != x).flatten(1).sum(1)
    assert (changed[mine & (model(x).argmax(1) == y)] == 1).all()
    for other in (PGD(steps=10), RandomNoise(draws=5)):
        run = SingleRun(other, ball, model=model, count=200).run()
        assert int((run.outcomes.verdict == Verdict.BROKEN).sum()) <= int(broken.sum())
        assert not (run.outcomes.verdict == Verdict.OUT_OF_BALL).any()


def test_the_number_of_pixels_is_part_of_the_id() -> None:
    ids = {ThreatModel("a", "digits", L0(Fraction(k))).id for k in (1, 2, 3)}
    assert len(ids) == 3

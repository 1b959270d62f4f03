"""The engine's laws: nothing an example gets depends on the company it keeps."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.outcomes import Verdict
from bench.engine.runner import run_attack
from bench.threats.access import Budget
from bench.threats.norms import L1, L2, Linf
from bench.threats.threat_model import Goal
from plugins.attacks.boundary import Boundary
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from plugins.attacks.random_noise import RandomNoise
from plugins.attacks.transfer import Transfer
from tests.engine.single_run import COUNT, NEAREST, NoisyModel, SingleRun, assert_same
from tests.fixtures.known_models import digits


def nearest_mean() -> nn.Module:
    """The linear classifier whose classes are their means: a surrogate without a draw."""
    x, y = digits(COUNT)
    means = torch.stack([x[y == label].flatten(1).mean(0) for label in range(10)])
    linear = nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(means)
        linear.bias.copy_(-means.square().sum(1) / 2)
    return nn.Sequential(nn.Flatten(), linear)


MATCHES = {
    "pgd with restarts": SingleRun(PGD(steps=6, restarts=3)),
    "pgd in L2": SingleRun(PGD(steps=10), L2(Fraction(1))),
    "pgd in L1": SingleRun(PGD(steps=10), L1(Fraction(2))),
    "margin towards every class": SingleRun(MarginPGD(steps=5), L2(Fraction(1, 2))),
    "random draws": SingleRun(RandomNoise(draws=5), Linf(Fraction(1, 2))),
    "deepfool": SingleRun(DeepFool(), L2(Fraction(1))),
    "deepfool for distance": SingleRun(DeepFool(), L2(Fraction(8)), NEAREST),
    "boundary": SingleRun(Boundary(steps=150), L2(Fraction(2)), budget=Budget(queries=120)),
    "transfer": SingleRun(Transfer(steps=8), source=nearest_mean()),
    "targeted": SingleRun(PGD(steps=12), goal=Goal("targeted", "next")),
    "declared random": SingleRun(PGD(steps=8, restarts=2), model=NoisyModel(0.05), random=True),
}


@pytest.mark.parametrize("name", MATCHES)
def test_company_order_and_interruption_change_nothing(name: str) -> None:
    match = MATCHES[name]
    first = match.run(64)
    assert first.outcomes.item.tolist() == list(range(COUNT))
    assert 0 < (first.outcomes.verdict == Verdict.BROKEN).sum() < COUNT or match.goal is NEAREST
    assert_same(first, match.run(32))
    assert_same(first, match.run(512))
    assert_same(first, match.run(64, order=np.random.default_rng(0).permutation(COUNT).tolist()))
    assert_same(first, match.run(64, cuts=[1, 1]))


def test_another_seed_plays_another_game() -> None:
    match = SingleRun(PGD(steps=5))
    game, other = match.spec(), replace(match.spec(), seed=1)
    one, two = (
        torch.cat([part.image for part in run_attack(g, match.referee(g).confirm)])
        for g in (game, other)
    )
    assert not torch.equal(one, two)


def test_success_at_step_s_means_broken_with_s_steps_and_not_with_fewer() -> None:
    whole = SingleRun(PGD(steps=12)).run().outcomes
    assert len(set(whole.step.tolist())) > 4
    for steps in (1, 3, 7):
        part = SingleRun(PGD(steps=steps)).run().outcomes
        expected = (whole.step >= 0) & (whole.step <= steps)
        assert np.array_equal(part.verdict == Verdict.BROKEN, expected)


def test_restarts_are_nested() -> None:
    once = SingleRun(PGD(steps=4)).run()
    thrice = SingleRun(PGD(steps=4, restarts=3)).run()
    first = thrice.outcomes.run == 0
    assert np.array_equal(first, once.outcomes.verdict == Verdict.BROKEN)
    assert torch.equal(thrice.images[torch.from_numpy(first)], once.images[torch.from_numpy(first)])
    assert (thrice.outcomes.run > 0).sum() > 3


def test_more_steps_and_more_restarts_break_no_less() -> None:
    broken = [
        set(np.flatnonzero(SingleRun(PGD(steps=s, restarts=r)).run().outcomes.verdict).tolist())
        for s, r in ((2, 1), (5, 1), (5, 2))
    ]
    assert broken[0] < broken[1] < broken[2]


def test_radius_zero_leaves_clean_accuracy() -> None:
    match = SingleRun(PGD(steps=3), Linf(Fraction(0)))
    game = match.spec()
    outcomes = match.run().outcomes
    assert np.array_equal(outcomes.verdict == Verdict.BROKEN, game.reached_on_clean.numpy())


def test_a_transfer_attack_never_hears_the_target() -> None:
    match = MATCHES["transfer"]
    outcomes = match.run().outcomes
    lost = match.spec().reached_on_clean.numpy()
    assert set(outcomes.gradients[~lost].tolist()) == {8}
    assert set(outcomes.looks[~lost].tolist()) == {1}
    assert set(outcomes.step[~lost].tolist()) <= {-1, 8}


def test_a_distance_board_keeps_the_nearest_success() -> None:
    far = SingleRun(Boundary(steps=60), L2(Fraction(8)), NEAREST).run().outcomes
    near = SingleRun(Boundary(steps=300), L2(Fraction(8)), NEAREST).run().outcomes
    assert (near.distance <= far.distance + 1e-9).all()
    assert np.median(near.distance) < 0.8 * np.median(far.distance)
    assert (near.verdict == Verdict.BROKEN).all()

"""Carlini-Wagner: the closed form on linear models, and nearer than DeepFool on a network."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.norms import L2
from bench.threats.threat_model import Goal
from plugins.attacks.carlini_wagner import BOX_SHARE, CarliniWagner
from plugins.attacks.deepfool import DeepFool
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    last_iterate,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

BALL, NEAREST = L2(Fraction(100)), Goal("nearest")


@pytest.mark.row("A11")
def test_on_a_linear_model_it_is_within_two_percent_of_the_closed_form() -> None:
    """min over k of (z_y - z_k) / ||w_k - w_y||: never below, 1.02 in the median, at most 1.2."""
    weight, x = gaussian(6, 12, seed=4), interior(64, 12)
    logits = ModelAccess(linear(weight)).logits(x)
    y = logits.argmax(1)
    apart = (weight - weight[y][:, None]).double().norm(dim=2)
    gap = logits.gather(1, y[:, None]).double() - logits
    nearest = torch.where(apart > 0, gap / apart, torch.inf).amin(1)
    result = run_and_judge(CarliniWagner(), linear(weight), x, y, BALL, goal=NEAREST)
    ratio = result.distance / nearest
    assert result.broken.all()
    assert ratio.min() >= 1 - 1e-5
    assert ratio.median() <= 1.02
    assert ratio.max() <= 1.2


@pytest.mark.row("A11")
def test_on_a_network_it_always_succeeds_and_is_mostly_nearer_than_the_published_deepfool() -> None:
    x, y = digits(64)
    model = small_cnn()
    right = ModelAccess(model).logits(x).argmax(1) == y
    ours, theirs = (
        run_and_judge(attack, model, x, y, BALL, goal=NEAREST)
        for attack in (CarliniWagner(), DeepFool(search=0))
    )
    assert ours.broken.all()
    assert (ours.distance <= theirs.distance)[right].float().mean() >= 0.7


@pytest.mark.row("A11")
def test_with_c_zero_every_query_is_the_clean_image() -> None:
    """With c = 0 only the distance is minimised."""
    x, y = digits(32)
    attack = CarliniWagner(price=0.0)
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _where: queries.append(adv)
    assert torch.equal(last_iterate(attack, rows, 250), x)
    assert len(queries) == 250
    assert all((adv - x).abs().max() <= 1 - BOX_SHARE for adv in queries)


@pytest.mark.row("A11")
@pytest.mark.parametrize("kappa", [0.0, 1.0, 4.0])
def test_a_success_has_at_least_the_margin_kappa(kappa: float) -> None:
    x, y = digits(32)
    attack, model = CarliniWagner(kappa=kappa), small_cnn()
    adv = last_iterate(attack, rows_of(attack, model, x, y, BALL), 800)
    reached = margin(ModelAccess(model).logits(adv), y)
    assert (reached >= kappa - 1e-4).all()
    assert (reached <= kappa + 1).float().mean() > 0.9


@pytest.mark.row("A11")
@pytest.mark.parametrize("kappa", [0.25, 0.5, 1.0])
def test_the_distance_grows_with_kappa_as_on_paper(kappa: float) -> None:
    """On a linear model of two classes the smallest distance is (|f| + kappa) / ||w||."""
    weight, x = gaussian(12, seed=5), interior(32, 12)
    model = binary(weight, -float(x.flatten(1).double().mean(0) @ weight.double()) + 0.1)
    logits = ModelAccess(model).logits(x)
    y = logits.argmax(1)
    attack = CarliniWagner(kappa=kappa)
    rows = rows_of(attack, model, x, y, BALL)
    nearest = (kappa - margin(logits, y)) / weight.norm()
    ratio = BALL.distance(last_iterate(attack, rows), x) / nearest
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= 1.05


def test_the_best_image_is_adversarial_and_its_distance_never_grows() -> None:
    x, y = digits(32)
    attack, model = CarliniWagner(length=40), small_cnn()
    before = torch.full((32,), torch.inf)
    for state in states(attack, rows_of(attack, model, x, y, BALL)):
        assert (state.distance <= before).all()
        before = state.distance
    assert (ModelAccess(model).logits(state.adv).argmax(1) != y).all()
    assert torch.equal(BALL.distance(state.adv, x), before)


def test_c_grows_tenfold_until_a_success_and_is_then_bisected() -> None:
    x, y = digits(32)
    attack = CarliniWagner()
    grown = halved = 0
    for first, second in pairwise(states(attack, rows_of(attack, small_cnn(), x, y, BALL), 500)):
        over = second.finished_rounds > first.finished_rounds
        assert torch.equal(first.constant[~over], second.constant[~over])
        searching = second.high.isinf()
        price = torch.where(searching, 10 * first.constant, (second.low + second.high) / 2)
        assert torch.equal(second.constant[over], price[over])
        won, high, low = second.succeeded[over], second.high[over], second.low[over]
        assert torch.equal(torch.where(won, high, low), first.constant[over])
        grown, halved = (
            grown + int((over & searching).sum()),
            halved + int((over & ~searching).sum()),
        )
    assert grown >= 32
    assert halved > 32


def test_a_converged_row_starts_its_next_round_at_once_and_ends_after_the_last() -> None:
    x, y = digits(32)
    attack = CarliniWagner(rounds=3)
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    early = torch.zeros(32, dtype=torch.bool)
    for first, second in pairwise(states(attack, rows)):
        over = second.finished_rounds > first.finished_rounds
        assert torch.equal(second.round_step, torch.where(over, 0, first.round_step + 1))
        early |= over & (first.round_step < attack.length - 1)
        assert attack.done(second)[second.finished_rounds >= 3].all()
    assert early.any()
    assert attack.done(second).all()


def test_only_charged_queries_count() -> None:
    """The nearest success is the nearest of the charged queries."""
    x, y = digits(32)
    attack = CarliniWagner()
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    nearest = torch.full((32,), torch.inf)

    def watch(adv: Tensor, logits: Tensor, charged: Tensor) -> None:
        won = charged & (logits.argmax(1) != y)
        distance = BALL.distance(adv, x).masked_fill(~won, torch.inf)
        nearest.copy_(torch.minimum(nearest, distance))

    rows.on_query = watch
    for state in states(attack, rows):
        assert torch.equal(state.distance, nearest)


def test_the_first_step_of_every_round_has_the_length_of_the_learning_rate() -> None:
    """Adam's corrected means make it rate * sign(gradient), in units of w."""
    x = interior(32, 12)
    attack, model = CarliniWagner(length=3, price=1.0, improves=torch.inf), binary(gaussian(12))
    rows = rows_of(attack, model, x, ModelAccess(model).logits(x).argmax(1), BALL)
    for place, state in enumerate(states(attack, rows, 8)):
        if place in (1, 4, 7):
            moved = (state.w - torch.atanh((2 * x - 1) * BOX_SHARE)).abs()
            assert torch.allclose(moved, torch.tensor(attack.rate), rtol=1e-3)

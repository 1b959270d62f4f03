"""Carlini-Wagner in Linf: the closed form on linear models, and nearer than DeepFool."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal
from plugins.attacks.carlini_wagner import BOX_SHARE
from plugins.attacks.carlini_wagner_linf import CarliniWagnerLinf
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

BALL, NEAREST = Linf(Fraction(1)), Goal("nearest")


@pytest.mark.row("A11")
@pytest.mark.parametrize(("shrink", "median", "most"), [(0.9, 1.06, 1.12), (0.98, 1.03, 1.06)])
def test_on_a_linear_model_it_approaches_the_closed_form(
    shrink: float, median: float, most: float
) -> None:
    """min over k of (z_y - z_k) / ||w_k - w_y||_1; nearer to it where tau shrinks by less."""
    weight, x = gaussian(6, 12, seed=4), interior(32, 12)
    logits = ModelAccess(linear(weight)).logits(x)
    y = logits.argmax(1)
    apart = (weight - weight[y][:, None]).double().abs().sum(2)
    gap = logits.gather(1, y[:, None]).double() - logits
    nearest = torch.where(apart > 0, gap / apart, torch.inf).amin(1)
    attack = CarliniWagnerLinf(shrink=shrink, rate=0.005)
    result = run_and_judge(attack, linear(weight), x, y, BALL, goal=NEAREST)
    ratio = result.distance / nearest
    assert result.broken.all()
    assert (result.gradients < attack.steps).all(), "a row ends once tau is near its distance"
    assert ratio.min() >= 1 - 1e-5
    assert ratio.median() <= median
    assert ratio.max() <= most


@pytest.mark.slow
@pytest.mark.row("A11")
def test_on_a_network_it_always_succeeds_and_is_mostly_nearer_than_the_published_deepfool() -> None:
    x, y = digits(64)
    model = small_cnn()
    right = ModelAccess(model).logits(x).argmax(1) == y
    ours, theirs = (
        run_and_judge(attack, model, x, y, BALL, goal=NEAREST)
        for attack in (CarliniWagnerLinf(), DeepFool(search=0))
    )
    assert ours.broken.all()
    assert (ours.distance <= theirs.distance)[right].float().mean() >= 0.7
    assert ours.distance[right].median() <= theirs.distance[right].median()


@pytest.mark.row("A11")
def test_with_c_zero_every_query_is_the_clean_image() -> None:
    x, y = digits(16)
    attack = CarliniWagnerLinf(price=0.0)
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _where: queries.append(adv)
    assert torch.equal(last_iterate(attack, rows, 120), x)
    assert len(queries) == 120
    assert all((adv - x).abs().max() <= 1 - BOX_SHARE for adv in queries)


@pytest.mark.row("A11")
def test_a_success_has_the_margin_kappa_and_the_distance_grows_with_it() -> None:
    """On a linear model of two classes the smallest distance is (|f| + kappa) / ||w||_1."""
    weight, x = gaussian(12, seed=5), interior(16, 12)
    model = binary(weight, -float(x.flatten(1).double().mean(0) @ weight.double()) + 0.1)
    logits = ModelAccess(model).logits(x)
    y = logits.argmax(1)
    for kappa in (0.25, 1.0):
        attack = CarliniWagnerLinf(kappa=kappa, rate=0.005)
        adv = last_iterate(attack, rows_of(attack, model, x, y, BALL), 1500)
        assert (margin(ModelAccess(model).logits(adv), y) >= kappa - 1e-4).all()
        ratio = BALL.distance(adv, x) / ((kappa - margin(logits, y)) / weight.abs().sum())
        assert ratio.min() >= 1 - 1e-4 and ratio.max() <= 1.15


def test_tau_shrinks_after_a_success_within_it_and_c_doubles_after_a_round_without_one() -> None:
    """Once c is at its largest, tau is halfway between what failed and the best distance."""
    x, y = digits(16)
    attack = CarliniWagnerLinf(length=30)
    shrunk = doubled = halved = 0
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    for first, second in pairwise(states(attack, rows, 300)):
        over = second.finished_rounds > first.finished_rounds
        given_up = second.failed_bound > first.failed_bound
        doubles = over & (second.constant == 2 * first.constant)
        within = over & ~given_up & ~doubles
        searching = within & (second.failed_bound == 0)
        middle = (second.failed_bound + second.distance) / 2
        same = ~(within | given_up)
        assert torch.equal(second.bound[same], first.bound[same])
        assert torch.equal(second.bound[searching], 0.9 * second.distance[searching])
        assert torch.equal(second.bound[within & ~searching], middle[within & ~searching])
        assert torch.equal(second.bound[given_up], middle[given_up])
        assert (2 * first.constant[given_up] > attack.highest).all()
        assert torch.equal(second.failed_bound[given_up], first.bound[given_up])
        assert (second.distance[within] <= first.bound[within]).all()
        assert (first.round_step[doubles | given_up] == 29).all()
        assert (second.round_step[over] == 0).all()
        assert (second.distance <= first.distance).all()
        shrunk, doubled = shrunk + int(searching.sum()), doubled + int(doubles.sum())
        halved += int(given_up.sum())
    assert shrunk >= 16 and doubled > 0 and halved > 0

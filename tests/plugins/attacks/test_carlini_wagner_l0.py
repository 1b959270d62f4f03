"""Carlini-Wagner in L0: the fewest pixels of affine models, and fewer than DeepFool."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.norms import L2
from bench.threats.sparse import L0
from bench.threats.threat_model import Goal
from plugins.attacks.carlini_wagner_l0 import CarliniWagnerL0
from plugins.attacks.deepfool import DeepFool
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    last_iterate,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

BALL, NEAREST = L0(Fraction(64)), Goal("nearest")


def affine(pixels: int = 16, offset: float = 0.6) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A binary affine model, images, labels, and the fewest pixels [n] that change the class.

    A pixel gains |w_i| times its way to the edge of the box; the largest gains come first.
    """
    weight, x = gaussian(pixels, seed=5), interior(32, pixels)
    model = binary(weight, offset - float(x.flatten(1).double().mean(0) @ weight.double()))
    logits = ModelAccess(model).logits(x)
    y, flat = logits.argmax(1), x.flatten(1)
    rising = torch.where(y[:, None] == 1, -weight, weight) > 0
    gain = torch.where(rising, 1 - flat, flat) * weight.abs()
    gap = (logits[:, 1] - logits[:, 0]).abs()
    reached = gain.sort(1, descending=True).values.cumsum(1)
    return model, x, y, (reached < gap[:, None]).sum(1) + 1


@pytest.mark.row("A11")
def test_on_an_affine_model_it_needs_hardly_more_than_the_fewest_pixels() -> None:
    model, x, y, fewest = affine()
    result = run_and_judge(CarliniWagnerL0(), model, x, y, BALL, goal=NEAREST)
    ratio = result.distance / fewest
    assert result.broken.all()
    assert ratio.min() >= 1
    assert (ratio == 1).float().mean() >= 0.8 and ratio.mean() <= 1.1


@pytest.mark.row("A11")
def test_on_a_network_it_changes_fewer_pixels_than_deepfool() -> None:
    """Success 100 %, and at most the pixels of DeepFool in L2 on 70 % of the digits."""
    x, y = digits(32)
    model = small_cnn()
    right = ModelAccess(model).logits(x).argmax(1) == y
    ours = run_and_judge(CarliniWagnerL0(), model, x, y, BALL, goal=NEAREST)
    theirs = run_and_judge(DeepFool(search=0), model, x, y, L2(Fraction(100)), goal=NEAREST)
    assert ours.broken.all()
    assert (ours.distance <= BALL.distance(theirs.image, x))[right].float().mean() >= 0.7
    assert torch.equal(ours.distance, (ours.image != x).any(1).flatten(1).sum(1).double())


@pytest.mark.row("A11")
def test_with_c_zero_every_query_is_the_clean_image() -> None:
    x, y = digits(16)
    attack = CarliniWagnerL0(price=0.0)
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _where: queries.append(adv)
    assert torch.equal(last_iterate(attack, rows, 120), x)
    assert len(queries) == 120
    assert all((adv - x).abs().max() <= 1e-4 for adv in queries)


@pytest.mark.row("A11")
@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_a_success_has_at_least_the_margin_kappa(kappa: float) -> None:
    x, y = digits(16)
    attack, model = CarliniWagnerL0(kappa=kappa), small_cnn()
    adv = last_iterate(attack, rows_of(attack, model, x, y, BALL), 800)
    assert (margin(ModelAccess(model).logits(adv), y) >= kappa - 1e-4).all()


def test_a_pixel_that_is_given_up_stays_clean_and_the_count_never_grows() -> None:
    x, y = digits(16)
    attack = CarliniWagnerL0()
    given_up = 0
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    for first, second in pairwise(states(attack, rows, 400)):
        assert (second.allowed <= first.allowed).all()
        assert (second.distance <= first.distance).all()
        succeeded = (second.finished_rounds > first.finished_rounds) & (
            second.constant == first.constant
        )
        fewer = (second.allowed < first.allowed).flatten(1).any(1)
        assert torch.equal(fewer, succeeded & fewer), "pixels are given up after a success alone"
        given_up += int(fewer.sum())
    assert given_up > 50


def test_the_pixels_given_up_have_the_smallest_product_of_change_and_gradient() -> None:
    attack = CarliniWagnerL0(given_up=1.0)
    change = torch.tensor([0.5, 0.0, 0.1, 0.2, -0.4, 0.3, 0.25, 0.6, 0.7]).view(1, 1, 3, 3)
    gradient = torch.tensor([1.0, 9.0, 1.0, -2.0, 0.1, 3.0, 4.0, 5.0, 6.0]).view(1, 1, 3, 3)
    kept = attack.kept_pixels(torch.ones(1, 1, 3, 3, dtype=torch.bool), change, gradient)
    # The unchanged pixel goes, and the two of the eight changed ones with .04 and .1.
    assert kept.flatten().tolist() == [True, False, False, True, False, True, True, True, True]

"""Square attack in L2 and L1: its windows, its budget, and its success with scores only."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.access import Access
from bench.threats.norms import L1, L2, PerturbationSet
from plugins.attacks.random_noise import RandomNoise
from plugins.attacks.square_l2_l1 import SquareL2L1, State, bench_attacks, schedule, update_pattern
from tests.fixtures.known_models import (
    digits,
    gaussian,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

OFFERED = {attack.name: attack for attack in bench_attacks() if isinstance(attack, SquareL2L1)}
each_norm = pytest.mark.parametrize(
    ("attack", "ball"),
    [(OFFERED["square-l2"], L2(Fraction(1))), (OFFERED["square-l1"], L1(Fraction(2)))],
    ids=["L2", "L1"],
)


def walked(
    attack: SquareL2L1, ball: PerturbationSet, steps: int
) -> tuple[list[State], list[Tensor], Tensor]:
    """The states and queries for 64 digits, and the clean images."""
    x, y = digits(64)
    rows = rows_of(attack, small_cnn(), x, y, ball, access=Access.SCORES)
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _charged: queries.append(adv)
    return list(states(attack, rows, steps)), queries, x


@each_norm
def test_every_query_is_legal_and_the_margin_of_the_kept_image_never_falls(
    attack: SquareL2L1, ball: PerturbationSet
) -> None:
    history, queries, x = walked(attack, ball, 100)
    assert len(queries) == 100
    _, y = digits(64)
    for before, after, query in zip(history, history[1:], queries, strict=False):
        assert ball.contains(query, x).all()
        new_margin = margin(ModelAccess(small_cnn()).logits(query), y)
        assert torch.equal(after.margin, torch.maximum(before.margin, new_margin))
    assert (history[-1].margin > history[1].margin).float().mean() > 0.9


def test_in_l2_the_kept_image_is_at_the_full_radius() -> None:
    ball = L2(Fraction(1))
    history, _, x = walked(OFFERED["square-l2"], ball, 60)
    for state in history:
        assert torch.allclose(ball.distance(state.adv, x), torch.tensor(1.0), atol=1e-5)


@each_norm
def test_between_two_images_only_two_windows_differ(
    attack: SquareL2L1, ball: PerturbationSet
) -> None:
    """Before the projection the change is the same elsewhere."""
    x, y = digits(64)
    rows = rows_of(attack, small_cnn(), x, y, ball)
    rows.t = torch.full_like(rows.t, 900)
    change = 0.01 * gaussian(64, 1, 8, 8)
    moved, (shape, to, gone) = attack.moved_budget(rows, change), attack.windows(rows)
    assert torch.equal(to.flatten(1).sum(1), torch.full((64,), 9))
    assert torch.equal(moved[~(to | gone)], change[~(to | gone)])
    assert (moved[gone & ~to] == 0).all()
    assert (shape[~to] == 0).all()


@each_norm
def test_moving_budget_keeps_the_norm_and_adds_the_unspent_part(
    attack: SquareL2L1, ball: PerturbationSet
) -> None:
    x, y = digits(64)
    rows = rows_of(attack, small_cnn(), x, y, ball)
    for place in (1, 30, 900):
        rows.t = torch.full_like(rows.t, place)
        moved = attack.moved_budget(rows, 0.01 * gaussian(64, 1, 8, 8, seed=place))
        norm = moved.flatten(1).norm(attack.power, dim=1)
        assert torch.allclose(norm, torch.tensor(ball.radius), rtol=1e-4)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("side", [1, 3, 7, 8])
def test_a_pattern_has_norm_one_and_halves_of_opposite_sign(power: int, side: int) -> None:
    eta = update_pattern(side, power, torch.device("cpu"))
    assert eta.shape == (side, side)
    assert float(eta.norm(power)) == pytest.approx(1, abs=1e-6)
    assert (eta[: side // 2] > 0).all()
    assert (eta[side // 2 :] < 0).all()


def test_a_pyramid_falls_as_the_sum_of_inverse_powers() -> None:
    """Seven wide and four high: 1 + 1/4 + 1/9 + 1/16 in the middle, 1/16 three pixels from it."""
    lower = -update_pattern(7, 2, torch.device("cpu"))[3:]
    rise = (1 + 1 / 4 + 1 / 9 + 1 / 16) / (1 / 16)
    assert float(lower[2, 3] / lower[2, 0]) == pytest.approx(rise, rel=1e-5)


@each_norm
def test_windows_are_odd_at_least_three_wide_and_shrink(
    attack: SquareL2L1, ball: PerturbationSet
) -> None:
    plan = schedule(attack, 8, 8, torch.device("cpu"))
    sides = plan.side[plan.kind].tolist()
    assert sides == sorted(sides, reverse=True)
    assert set(sides) == {7, 5, 3}
    assert schedule(attack, 2, 5, torch.device("cpu")).side.max() <= 2


@each_norm
def test_with_scores_only_it_breaks_more_than_random_noise(
    attack: SquareL2L1, ball: PerturbationSet
) -> None:
    x, y = digits(64)
    short = replace(attack, steps=200)
    square = run_and_judge(short, small_cnn(), x, y, ball, access=Access.SCORES)
    noise = run_and_judge(RandomNoise(draws=100), small_cnn(), x, y, ball, access=Access.NOTHING)
    assert square.gradients.sum() == 0
    assert square.broken.sum() > noise.broken.sum() + 10


def test_on_a_linear_model_the_l2_form_is_near_the_farthest_point() -> None:
    x, weight, ball = 0.3 + 0.4 * digits(32)[0], gaussian(64), L2(Fraction(1, 4))
    model = linear(torch.stack([-weight, weight]))
    y = ModelAccess(model).logits(x).argmax(1)
    attack = replace(OFFERED["square-l2"], steps=1000)
    *_, state = states(attack, rows_of(attack, model, x, y, ball))
    start = margin(ModelAccess(model).logits(x), y)
    best = 2 * weight.norm() * ball.radius
    assert (state.margin - start <= best + 1e-4).all()
    assert (state.margin - start).mean() > 0.6 * best

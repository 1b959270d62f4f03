"""Square attack: its queries, the images it keeps, and its success with scores only."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.access import Access
from bench.threats.norms import Linf
from plugins.attacks.pgd import PGD
from plugins.attacks.random_noise import RandomNoise
from plugins.attacks.square import (
    Square,
    State,
    area_shares,
    bench_attacks,
    draw_proposal,
    square_mask,
)
from tests.fixtures.known_models import (
    digits,
    gaussian,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

BALL = Linf(Fraction(1, 10))


def walked(attack: Square, steps: int) -> tuple[list[State], list[Tensor], Tensor]:
    """The states and queries for 64 digits, and the clean images."""
    x, y = digits(64)
    rows = rows_of(attack, small_cnn(), x, y, BALL, access=Access.SCORES)
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _charged: queries.append(adv)
    return list(states(attack, rows, steps)), queries, x


def test_the_margin_never_falls_and_is_that_of_the_kept_image() -> None:
    history, queries, _ = walked(Square(), 200)
    _, y = digits(64)
    before = torch.full((64,), -torch.inf)
    for state, query in zip(history[1:], queries, strict=True):
        new_margin = margin(ModelAccess(small_cnn()).logits(query), y)
        assert torch.equal(state.margin, torch.maximum(before, new_margin))
        before = state.margin
    last = margin(ModelAccess(small_cnn()).logits(history[-1].adv), y)
    assert torch.equal(last, before)
    assert (before > history[1].margin).float().mean() > 0.9


def test_a_nan_margin_changes_nothing() -> None:
    silent = torch.zeros(64, dtype=torch.bool)

    class Faltering(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = small_cnn()(images)
            return logits.masked_fill(silent[: len(images), None], torch.nan)

    x, y = digits(64)
    rows = rows_of(Square(), Faltering(), x, y, BALL, access=Access.SCORES)
    history = list(states(Square(), rows, 3))
    silent[:] = True
    after = Square().step(rows, history[-1])
    assert torch.equal(after.margin, history[-1].margin) and torch.equal(after.adv, history[-1].adv)


def test_every_query_is_inside_ball_and_box() -> None:
    _, queries, x = walked(Square(), 200)
    assert len(queries) == 200
    assert all(BALL.contains(query, x).all() for query in queries)


def test_the_first_query_has_vertical_stripes() -> None:
    _, (first, *_), x = walked(Square(), 1)
    change = first - x
    free = (x > 0.1) & (x < 0.9)
    assert torch.allclose(change.abs()[free], torch.tensor(0.1))
    up, down = ((way * change > 1e-6).any(2) for way in (1, -1))
    assert not (up & down).any()
    assert 0.3 < up.float().mean() < 0.7


def test_a_query_differs_from_the_best_image_in_one_square() -> None:
    attack = Square(steps=200)
    history, queries, _ = walked(attack, 200)
    rows = rows_of(attack, small_cnn(), *digits(64), BALL)
    for place in range(1, 200):
        rows.t = torch.full_like(rows.t, place)
        side = attack.side(rows)
        changed = (queries[place] != history[place].adv)[:, 0]
        for axis in (1, 2):
            line = changed.any(axis)
            far, near = torch.arange(1, 9), torch.arange(8, 0, -1)
            reach = (line * far).amax(1) + (line * near).amax(1) - 8
            assert (reach <= side).all()
        assert changed.flatten(1).any(1).float().mean() > 0.5


def test_a_square_is_complete_and_occurs_everywhere_in_the_image() -> None:
    x, y = digits(64)
    rows = rows_of(Square(), small_cnn(), x, y, BALL)
    seen = torch.zeros(8, 8, dtype=torch.bool)
    for place in range(50):
        rows.t = torch.full_like(rows.t, place)
        side = 1 + rows.example % 7
        inside = square_mask(draw_proposal(rows).place, side, 8, 8)[:, 0]
        assert torch.equal(inside.flatten(1).sum(1), side.square())
        assert torch.equal(inside.any(1).sum(1), side)
        seen |= inside[side == 1].any(0)
    assert seen.all()


def test_the_side_falls_from_almost_the_whole_image_to_one_pixel() -> None:
    x, y = digits(64)
    attack = Square()
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    sides = []
    for place in (0, 1, 2, 5, 6, 20, 21, 999):
        rows.t = torch.full_like(rows.t, place)
        sides.append(int(attack.side(rows)[0]))
    assert sides == [0, 7, 5, 5, 4, 4, 3, 1]


def test_it_needs_scores_only_and_breaks_more_than_random_noise() -> None:
    x, y = digits(128)
    square = run_and_judge(Square(), small_cnn(), x, y, BALL, access=Access.SCORES)
    noise = run_and_judge(RandomNoise(draws=100), small_cnn(), x, y, BALL, access=Access.NOTHING)
    pgd = run_and_judge(PGD(), small_cnn(), x, y, BALL)
    assert square.gradients.sum() == 0
    assert square.broken.sum() > noise.broken.sum() + 30
    assert square.broken.sum() > 0.8 * pgd.broken.sum()


def test_on_a_linear_model_it_finds_the_farthest_corner() -> None:
    """There single pixels are enough: every pixel that increases the margin is kept."""
    x = 0.3 + 0.4 * digits(32)[0]
    weight = gaussian(64)
    model = linear(torch.stack([-weight, weight]))
    y = ModelAccess(model).logits(x).argmax(1)
    attack = Square(steps=1500)
    *_, state = states(attack, rows_of(attack, model, x, y, BALL))
    direction = (1 - 2 * y)[:, None, None, None] * weight.view(1, 1, 8, 8)
    best = margin(ModelAccess(model).logits(BALL.farthest(direction, x)), y)
    assert (state.margin <= best + 1e-4).all()
    assert (best - state.margin < 0.02 * best.abs().clamp_min(1)).float().mean() > 0.9


def test_the_long_form_counts_halvings_in_steps_and_the_short_one_in_shares() -> None:
    short, long, longer = bench_attacks()
    assert (longer.name, longer.steps) == ("square-long", 10_000)
    assert (short.name, short.steps, long.name, long.steps) == (
        "square", 1000, "square-5000", 5000,
    )  # fmt: skip
    absolute, spread = (area_shares(1.0, 5000, rescaled=rescaled) for rescaled in (False, True))
    assert [absolute[t] for t in (10, 11, 50, 51, 4000, 4001)] == [
        1,
        0.5,
        0.5,
        0.25,
        1 / 64,
        1 / 128,
    ]
    assert [spread[t] for t in (5, 6, 25, 26, 2000, 2001)] == [1, 0.5, 0.5, 0.25, 1 / 64, 1 / 128]
    assert isinstance(long, Square)
    assert not long.rescaled


def test_no_query_repeats_the_best_image() -> None:
    history, queries, _ = walked(Square(), 100)
    for state, query in zip(history[1:-1], queries[1:], strict=True):
        assert (query != state.adv).flatten(1).any(1).all()


def test_channels_have_their_own_signs_and_rows_their_own_places() -> None:
    x = torch.full((64, 70, 8, 8), 0.5)
    rows = rows_of(Square(), linear(gaussian(2, 70 * 64)), x, torch.zeros(64).long(), BALL)
    place, up = draw_proposal(rows)
    assert up.shape == (64, 70, 1, 1)
    assert 0.45 < up.float().mean() < 0.55
    assert (up.flatten(1).float().std(1) > 0.4).all()
    assert len(set(place.tolist())) == 64

"""PGD with random restarts: more restarts leave no more robust examples."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.norms import Linf
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_restarts import PGDRestarts
from tests.fixtures.known_models import (
    digits,
    gaussian,
    interior,
    last_iterate,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
)


@pytest.mark.row("A09")
def test_more_restarts_break_every_example_that_fewer_break() -> None:
    x, y = digits(96)
    ball = Linf(Fraction(12, 255))
    broken = [
        run_and_judge(PGDRestarts(restarts=count, steps=3), small_cnn(), x, y, ball).broken
        for count in (1, 4, 16)
    ]
    for few, more in pairwise(broken):
        assert not (few & ~more).any()
    assert broken[0].sum() < broken[2].sum() < 96


def test_each_restart_begins_at_another_point() -> None:
    x, y = digits(32)
    attack, ball = PGDRestarts(), Linf(Fraction(1, 10))
    every = torch.arange(32)
    starts = [
        attack.start(
            rows_of(attack, small_cnn(), x, y, ball, restart=torch.full_like(y, run)).at_start(
                every
            )
        )
        for run in range(3)
    ]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


@pytest.mark.row("A09")
def test_on_an_affine_model_all_restarts_end_at_the_same_loss() -> None:
    """The loss is convex and the sign of its gradient constant: every start ends in the same
    corner.
    """
    x, y, ball = interior(64, 12), torch.ones(64).long(), Linf(Fraction(1, 8))
    model = linear(gaussian(2, 12), gaussian(2, seed=5))
    attack = PGDRestarts()
    losses = torch.stack(
        [
            margin(
                ModelAccess(model).logits(
                    last_iterate(attack, rows_of(attack, model, x, y, ball, restart=y * run))
                ),
                y,
            )
            for run in range(6)
        ]
    )
    assert (losses - losses[0]).abs().max() < 1e-5
    short = PGDRestarts(steps=1)
    spread = torch.stack(
        [
            margin(
                ModelAccess(model).logits(
                    last_iterate(short, rows_of(short, model, x, y, ball, restart=y * run))
                ),
                y,
            )
            for run in range(6)
        ]
    )
    assert (spread - spread[0]).abs().max() > 1e-2


def test_a_step_is_that_of_pgd_and_there_are_twenty_restarts() -> None:
    x, y = digits(32)
    rows = rows_of(PGD(), small_cnn(), x, y, Linf(Fraction(1, 10)))
    attack = PGDRestarts()
    assert torch.equal(attack.step(rows, x), PGD().step(rows, x))
    assert attack.restart_count(10) == 20

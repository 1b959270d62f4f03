"""Tests of bench.engine.precision_audit: successes are confirmed, survivors are sampled."""

from __future__ import annotations

import copy
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.model_access import ModelAccess
from bench.engine.precision_audit import MIN_AUDITED, PrecisionAudit, sampled_survivors
from bench.engine.runner import run_attack
from bench.referee.fresh_model import FreshModel
from bench.referee.referee import Referee
from bench.threats.access import Budget
from bench.threats.norms import Linf
from plugins.attacks.pgd import PGD
from tests.fixtures.known_models import UNTARGETED, digits, small_cnn

BALL = Linf(Fraction(51, 255))


def cell_spec(module: nn.Module, count: int = 150) -> CellSpec:
    """PGD queries `module`; the defense is the small CNN."""
    x, y = digits(count)
    clean = ModelAccess(small_cnn()).logits(x)
    return CellSpec(
        attack=PGD(steps=10), model_access=ModelAccess(module), defense=ModelAccess(small_cnn()),
        ball=BALL, goal=UNTARGETED, budget=Budget(), x=x, y=y, target=torch.full_like(y, -1),
        clean_logits=clean, reached_on_clean=clean.argmax(1) != y, seed=0, slots=64,
    )  # fmt: skip


def referee(of: CellSpec) -> Referee:
    fresh_model = FreshModel(copy.deepcopy(small_cnn()))
    return Referee(fresh_model, BALL, UNTARGETED, of.x, of.y, of.target)


def joined(parts: list[Candidates]) -> Candidates:
    whole = Candidates(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return Candidates(*(column[whole.item.argsort()] for column in whole))


class WrongAnswers(nn.Module):
    """The negated logits of the small CNN."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = small_cnn()(images)
        return -logits


class NoGradient(nn.Module):
    """Returns the label of the nearest digit with zero gradient: no row is broken."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = digits(300)
        near = torch.cdist(images.detach().flatten(1), x.flatten(1)).argmin(1)
        return nn.functional.one_hot(y[near], 10).float() + 0 * images.flatten(1)[:, :10]


def test_a_form_with_wrong_answers_invents_no_success() -> None:
    wrong = cell_spec(WrongAnswers())
    parts = joined(list(run_attack(wrong, referee(wrong).confirm)))
    claimed = (parts.step >= 0).nonzero()[:, 0]
    assert bool((small_cnn()(parts.image[claimed]).argmax(1) != wrong.y[claimed]).all())
    assert 0 < len(claimed) < len(wrong.y)


def test_without_confirmation_wrong_answers_would_count_as_successes() -> None:
    wrong = cell_spec(WrongAnswers())
    parts = joined(
        list(run_attack(wrong, lambda items, images: torch.ones_like(items, dtype=torch.bool)))
    )
    assert bool((parts.step >= 0).all())


def test_a_form_without_gradients_is_detected_and_the_cell_run_in_float32() -> None:
    no_gradient, exact = cell_spec(NoGradient(), 300), cell_spec(small_cnn(), 300)
    audits: list[PrecisionAudit] = []
    parts = list(
        run_attack(no_gradient, referee(exact).confirm, exact=exact, on_audit=audits.append)
    )
    expected = joined(list(run_attack(exact, referee(exact).confirm)))
    (audit,) = audits
    assert audit.sampled == MIN_AUDITED < audit.survivors
    assert audit.broken > 0
    unbroken = joined(list(run_attack(no_gradient, referee(no_gradient).confirm))).step < 0
    for name, one, two in zip(Candidates._fields, joined(parts), expected, strict=True):
        assert torch.equal(one[unbroken], two[unbroken]), name


def test_a_correct_form_is_audited_by_sample_only() -> None:
    small_ball = replace(cell_spec(small_cnn(), 300), ball=Linf(Fraction(1, 100)))
    audits: list[PrecisionAudit] = []
    judge = referee(small_ball)
    judge.ball = small_ball.ball
    parts = joined(
        list(run_attack(small_ball, judge.confirm, exact=small_ball, on_audit=audits.append))
    )
    (audit,) = audits
    assert audit == PrecisionAudit(int((parts.step < 0).sum()), MIN_AUDITED, 0)
    assert parts.item.tolist() == list(range(300))


@pytest.mark.parametrize(("survivors", "sampled"), [(0, 0), (40, 40), (400, 100), (4000, 200)])
def test_a_twentieth_of_the_survivors_is_drawn_and_at_least_a_hundred(
    survivors: int, sampled: int
) -> None:
    items = list(range(0, 3 * survivors, 3))
    sample = sampled_survivors(items, seed=1)
    assert len(set(sample)) == len(sample) == sampled
    assert set(sample) <= set(items)
    assert sampled_survivors(items[::-1], seed=1) == sample
    assert sampled in (0, survivors) or sampled_survivors(items, seed=2) != sample

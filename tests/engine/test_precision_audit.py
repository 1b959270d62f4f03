"""What a faster form claims is asked again, and what it leaves standing is audited by sample."""

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


def game(module: nn.Module, count: int = 150) -> CellSpec:
    """PGD asks `module`; the defense is the small network."""
    x, y = digits(count)
    clean = ModelAccess(small_cnn()).logits(x)
    return CellSpec(
        attack=PGD(steps=10), model_access=ModelAccess(module), defense=ModelAccess(small_cnn()), ball=BALL,
        goal=UNTARGETED, budget=Budget(), x=x, y=y, target=torch.full_like(y, -1), clean_logits=clean,
        reached_on_clean=clean.argmax(1) != y, seed=0, slots=64,
    )  # fmt: skip


def referee(of: CellSpec) -> Referee:
    court = FreshModel(copy.deepcopy(small_cnn()))
    return Referee(court, BALL, UNTARGETED, of.x, of.y, of.target)


def joined(parts: list[Candidates]) -> Candidates:
    whole = Candidates(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return Candidates(*(column[whole.item.argsort()] for column in whole))


class Liar(nn.Module):
    """Says of every image that it is another class; climbs like the small network."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = small_cnn()(images)
        return -logits


class Flat(nn.Module):
    """Says nothing and shows no slope: every row survives it."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = digits(300)
        near = torch.cdist(images.detach().flatten(1), x.flatten(1)).argmin(1)
        return nn.functional.one_hot(y[near], 10).float() + 0 * images.flatten(1)[:, :10]


def test_a_lying_form_invents_no_success() -> None:
    lie = game(Liar())
    parts = joined(list(run_attack(lie, referee(lie).confirm)))
    claimed = (parts.step >= 0).nonzero()[:, 0]
    assert bool((small_cnn()(parts.image[claimed]).argmax(1) != lie.y[claimed]).all())
    assert 0 < len(claimed) < len(lie.y)


def test_without_the_second_question_the_lie_would_stand() -> None:
    lie = game(Liar())
    parts = joined(
        list(run_attack(lie, lambda items, images: torch.ones_like(items, dtype=torch.bool)))
    )
    assert bool((parts.step >= 0).all())


def test_a_blind_form_is_found_out_and_the_cell_is_played_in_float32() -> None:
    blind, exact = game(Flat(), 300), game(small_cnn(), 300)
    heard: list[PrecisionAudit] = []
    parts = list(run_attack(blind, referee(exact).confirm, exact=exact, on_audit=heard.append))
    wanted = joined(list(run_attack(exact, referee(exact).confirm)))
    (audit,) = heard
    assert audit.sampled == MIN_AUDITED < audit.survivors
    assert audit.broken > 0
    held = joined(list(run_attack(blind, referee(blind).confirm))).step < 0
    for name, one, two in zip(Candidates._fields, joined(parts), wanted, strict=True):
        assert torch.equal(one[held], two[held]), name


def test_an_honest_form_is_sampled_only() -> None:
    easy = replace(game(small_cnn(), 300), ball=Linf(Fraction(1, 100)))
    heard: list[PrecisionAudit] = []
    rules = referee(easy)
    rules.ball = easy.ball
    parts = joined(list(run_attack(easy, rules.confirm, exact=easy, on_audit=heard.append)))
    (audit,) = heard
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

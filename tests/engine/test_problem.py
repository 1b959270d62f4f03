"""Tests of bench.engine.problem: answers, charges and random numbers of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.engine.problem import BATCH_UNIT, BatchProblem
from bench.plugin import margin
from bench.threats.access import Budget
from plugins.attacks.pgd import PGD
from tests.engine.single_run import LINF
from tests.fixtures.known_models import digits, rows_of, small_cnn


def all_answers(rows: BatchProblem, charged: Tensor | None) -> Iterator[Tensor]:
    """All answers that an attack can get for the clean images."""
    classes = (torch.arange(2) + torch.zeros_like(rows.y)[:, None]).long()
    yield rows.logits(rows.x, charged)
    yield from rows.gradient(rows.x, margin, charged)
    yield from rows.jacobian(rows.x, classes, charged)


def test_rows_outside_where_get_zeros_and_are_not_charged() -> None:
    rows = rows_of(PGD(), small_cnn(), *digits(BATCH_UNIT), LINF)
    charged = torch.arange(BATCH_UNIT) % 2 == 0
    for answer in all_answers(rows, charged):
        nonzero = answer.view(BATCH_UNIT, -1).ne(0).any(1)
        assert nonzero[charged].all() and not nonzero[~charged].any()
    assert (rows.labels(rows.x, charged)[~charged] == 0).all()
    assert torch.equal(rows.ledger.forwards > 0, charged)


def test_rows_over_their_budget_get_zeros_and_are_not_charged() -> None:
    rows = rows_of(PGD(), small_cnn(), *digits(BATCH_UNIT), LINF)
    rows.ledger.budget = Budget(queries=0)
    for answer in all_answers(rows, None):
        assert not answer.any()
    assert not rows.labels(rows.x).any() and rows.ledger.refused.all()
    assert not rows.ledger.forwards.any()

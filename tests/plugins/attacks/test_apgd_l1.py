"""APGD in L1: its phases, its sparse steps, and a known optimum."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess
from bench.plugin import Traits
from bench.threats.norms import L1
from plugins.attacks.apgd_l1 import SparseAPGD, State, bench_attacks, schedule, sparse_direction
from plugins.attacks.pgd import PGD
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

OFFERED = {one.name: one for one in bench_attacks() if isinstance(one, SparseAPGD)}
CE, RIVALS = OFFERED["apgd-l1-ce"], OFFERED["apgd-l1-t"]
BALL = L1(Fraction(2))


def iterated(attack: SparseAPGD, count: int = 32) -> tuple[list[State], list[Tensor], Tensor]:
    """The states and queries for some digits, and the clean images."""
    x, y = digits(count)
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _charged: queries.append(adv)
    return list(states(attack, rows)), queries, x


def test_the_phases_are_thirty_thirty_and_forty_of_a_hundred_steps() -> None:
    days = schedule(100, torch.device("cpu"))
    assert days.phase.bincount().tolist() == [30, 30, 41]
    assert days.first.nonzero()[:, 0].tolist() == [0, 30, 60]
    assert days.last.nonzero()[:, 0].tolist() == [29, 59]
    assert days.radii[[0, 30, 60]].tolist() == [3, 2, 1]
    assert len(schedule(1, torch.device("cpu")).phase) == 2


def test_every_iterate_is_legal_and_queries_are_in_shrinking_balls() -> None:
    path, queries, x = iterated(CE)
    assert all(BALL.contains(state.adv, x).all() for state in path)
    for step, query in enumerate(queries):
        assert BALL.scaled(3 - step // 30 if step < 90 else 1).contains(query, x).all()
    assert (BALL.distance(queries[25], x) > 2 * BALL.radius).any()
    assert BALL.contains(queries[60], x).all()


def test_the_best_loss_never_falls_within_a_phase_and_the_next_one_starts_there() -> None:
    path, queries, x = iterated(CE)
    for step in range(1, 100):
        if step not in (30, 60):
            assert (path[step + 1].best_loss >= path[step].best_loss).all()
    assert torch.equal(queries[60], BALL.project(path[60].best, x))
    assert torch.equal(queries[30], BALL.scaled(2).project(path[30].best, x))


def test_a_step_changes_only_the_pixels_with_the_largest_gradients() -> None:
    gradient, adv = gaussian(32, 1, 8, 8), torch.full((32, 1, 8, 8), 0.5)
    for changed in (0, 3, 30, 96):
        way = sparse_direction(gradient, adv, torch.full((32,), changed))
        moved = (way != 0).flatten(1)
        assert (moved.sum(1) == min(64, max(1, 2 * changed // 3))).all()
        assert torch.allclose(way.abs().sum((1, 2, 3)), torch.tensor(1.0))
        assert (way * gradient >= 0).all()
        size = gradient.abs().flatten(1)
        least = size.masked_fill(~moved, torch.inf).amin(1)
        assert (least >= size.masked_fill(moved, 0).amax(1)).all()


def test_a_step_skips_pixels_at_the_edge_of_the_box() -> None:
    gradient, adv = gaussian(32, 1, 8, 8), (gaussian(32, 1, 8, 8, seed=1) > 0).float()
    way = sparse_direction(gradient, adv, torch.full((32,), 9))
    assert (way[(adv == 1) & (gradient > 0)] == 0).all()
    assert (way[(adv == 0) & (gradient < 0)] == 0).all()
    assert ((way != 0).flatten(1).sum(1) == 6).all()
    assert (sparse_direction(0 * gradient, adv, torch.full((32,), 9)) == 0).all()


@pytest.mark.parametrize("edge", [False, True], ids=["free", "in the box"])
def test_on_a_linear_binary_model_it_ends_at_the_farthest_point(edge: bool) -> None:
    x = digits(64)[0] if edge else interior(64, 64)
    weight, label = gaussian(64) / 8, torch.ones(64, dtype=torch.int64)
    ball = L1(Fraction(2)) if edge else L1(Fraction(3, 10))
    *_, end = states(CE, rows_of(CE, binary(weight), x, label, ball))
    best = ball.farthest(-weight.view_as(x[:1]).expand_as(x), x)
    optimum, gain = ((x - one).flatten(1) @ weight for one in (best, end.best))
    assert (gain <= optimum + 1e-5).all()
    assert (gain >= 0.97 * optimum).all()


def test_five_restarts_or_at_most_five_target_classes() -> None:
    assert [Traits.restart_count(CE, classes) for classes in (2, 10)] == [5, 5]
    assert [Traits.restart_count(RIVALS, classes) for classes in (2, 4, 10)] == [1, 3, 5]
    assert Traits.of(RIVALS).goals == ("untargeted",)
    assert Traits.of(CE).goals == ()


def test_it_leaves_fewer_robust_examples_than_pgd() -> None:
    x, y = digits(64)
    before = ModelAccess(small_cnn()).logits(x).argmax(1) == y
    sparse = run_and_judge(CE, small_cnn(), x, y, BALL)
    plain = run_and_judge(PGD(), small_cnn(), x, y, BALL)
    assert sparse.broken.sum() >= plain.broken.sum()
    assert sparse.broken.sum() > (~before).sum() + 20

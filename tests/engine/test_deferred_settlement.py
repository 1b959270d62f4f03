"""Tests of bench.engine.deferred_settlement: which restart counts, and what it has cost."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from bench.engine.deferred_settlement import can_defer
from bench.engine.scheduler import SETTLE_STEPS
from bench.threats.norms import Linf
from plugins.attacks.pgd import PGD
from tests.engine.device_run import differences, moved_cell, on_device, on_host
from tests.engine.single_run import SingleRun
from tests.fixtures.simulated_device import SimulatedDevice

BALL = Linf(Fraction(1, 9))


def even(items: Tensor, images: Tensor) -> Tensor:
    """[k] bool: confirms the items with an even number."""
    return items % 2 == 0


def test_a_last_iterate_that_succeeds_counts_with_its_final_check() -> None:
    single = SingleRun(PGD(steps=6, rate=0.3, restarts=4), count=120, ball=BALL)
    run, expected = on_device(single).candidates, on_host(single)
    at_the_end = run.step == 6
    assert int(at_the_end.sum()) >= 3 and int((run.restart[at_the_end] > 0).sum()) >= 1
    assert bool((run.final_checks == run.restart + 1)[at_the_end].all())
    assert bool(run.distance[at_the_end].isfinite().all())
    assert differences(run, expected) == []


def test_a_refused_success_ends_no_restart() -> None:
    single = SingleRun(PGD(steps=6, rate=0.3, restarts=3), count=120, ball=BALL)
    run, expected = on_device(single, rule=even).candidates, on_host(single, rule=even)
    assert int((run.step >= 0).sum()) > int(single.spec().reached_on_clean.sum())
    odd = (run.item % 2 == 1) & ~single.spec().reached_on_clean
    assert bool((run.step[odd] == -1).all()) and bool((run.forwards[odd] == 18).all())
    assert differences(run, expected) == []


def test_more_successes_than_one_settlement_confirms_wait_for_the_next() -> None:
    single = SingleRun(PGD(steps=16, rate=0.5), count=256)
    run = on_device(single, 256)
    expected = on_host(single, 256)
    assert int((expected.step >= 0).sum()) > 2 * 256 / 4
    assert sum(run.waits.values()) <= -(-run.steps // SETTLE_STEPS)
    assert differences(run.candidates, expected) == []


def test_the_cost_of_a_success_is_what_was_spent_by_then() -> None:
    single = SingleRun(PGD(steps=12), count=80)
    run = on_device(single).candidates
    early = (run.step >= 0) & (run.step < 12) & ~single.spec().reached_on_clean
    assert int(early.sum()) > 40
    assert torch.equal(run.forwards[early], run.step[early] + 1)
    assert torch.equal(run.gradients[early], run.step[early] + 1)
    assert bool((run.final_checks[early] == 0).all())


def test_only_a_device_defers() -> None:
    single = SingleRun(PGD(), count=4)
    assert not can_defer(single.spec())
    with SimulatedDevice():
        assert can_defer(moved_cell(single.spec(), single)[0])

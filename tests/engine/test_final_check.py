"""Tests of bench.engine.final_check: pooled queries of last iterates."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from bench.engine.cell_spec import EndedRestarts
from bench.engine.final_check import POOL, FinalCheck
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal
from plugins.attacks.pgd import PGD
from tests.engine.single_run import NEAREST, SingleRun
from tests.fixtures.known_models import UNTARGETED, small_cnn
from tests.fixtures.rejecting_defenses import (
    FGSM,
    accepts_between,
    run_on_grey_images,
)


def test_the_final_check_includes_the_rejection_score() -> None:
    """One sign step leaves 0.65, which only the final check queries."""
    for score, broken in ((accepts_between(0.6, 0.7), True), (accepts_between(0.51, 0.6), False)):
        found = run_on_grey_images(FGSM, score)
        assert (found.broken == broken).all() and (found.final_checks == 1).all()


def ended(items: list[int], restarts: list[int], final: list[bool], x: Tensor) -> EndedRestarts:
    """Ended restarts of these items whose last iterates are `x` [m, C, H, W]."""
    item, far = torch.tensor(items), torch.full((len(items),), torch.inf, dtype=torch.float64)
    restart = torch.tensor(restarts)
    return EndedRestarts(
        item=item, restart=restart, final=torch.tensor(final), image=x, forwards=10 * restart + 10,
        gradients=restart, step=item + 5, nearest_image=x, nearest_distance=far,
        nearest_step=item - item, nearest_restart=restart,
    )  # fmt: skip


def final_check(goal: Goal = UNTARGETED) -> tuple[FinalCheck, Tensor]:
    """A final check of four digits whose confirmations all succeed, and the negatives' success."""
    spec = SingleRun(PGD(), Linf(Fraction(1)), goal, count=4).spec()
    x = spec.x[:].clone()
    check = FinalCheck(replace(spec, x=x), lambda items, images: torch.ones(len(items)) > 0)
    return check, x


def test_the_first_successful_restart_of_an_item_counts() -> None:
    check, x = final_check()
    wrong, right = 1 - x, x
    assert (small_cnn()(wrong).argmax(1) != small_cnn()(right).argmax(1))[:2].all()
    images = torch.stack([right[0], wrong[0], wrong[0], right[1]])
    check.pending.append(ended([0, 0, 0, 1], [0, 1, 2, 0], [False, False, True, True], images))
    found, nearer, _ = check.run()
    assert found.item.tolist() == [0, 1] and check.pending == [] and len(nearer) == 0
    assert found.restart.tolist() == [1, -1] and found.step.tolist() == [5, -1]
    assert found.final_checks.tolist() == [2, 1] and found.forwards.tolist() == [20, 10]


def test_an_item_with_restarts_to_come_and_no_success_is_not_finished() -> None:
    check, x = final_check()
    check.pending.append(ended([0, 1], [0, 0], [False, True], x[:2]))
    assert check.run()[0].item.tolist() == [1]


def test_the_goal_nearest_reports_successes_of_items_with_restarts_to_come() -> None:
    check, x = final_check(NEAREST)
    check.pending.append(ended([0, 1], [0, 0], [False, True], 1 - x[:2]))
    found, nearer, nearest = check.run()
    assert found.item.tolist() == [1] and nearer.tolist() == [0]
    assert nearest.step.tolist() == [5] and torch.equal(nearest.image[0], 1 - x[0])


def test_pending_restarts_are_found_counted_and_discarded_by_item() -> None:
    check, x = final_check()
    check.pending.append(ended([0, 1, 0], [0, 0, 1], [False] * 3, x[:3]))
    assert check.contains_any(torch.tensor([1, 9])) and not check.contains_any(torch.tensor([2]))
    check.discard(torch.tensor([0]))
    assert check.pending[0].item.tolist() == [1]
    before, check.pending = check.full, check.pending * POOL
    assert (before, check.full) == (False, True)
    check.discard(torch.tensor([1]))
    assert check.pending == []

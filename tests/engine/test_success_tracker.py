"""Tests of bench.engine.success_tracker: which successes are recorded, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.engine.slots import SlotArray
from bench.engine.success_tracker import SuccessTracker
from bench.plugin import Attack, StopRule
from bench.threats.norms import L2, Linf, PerturbationSet
from plugins.attacks.boundary import Boundary
from plugins.attacks.pgd import PGD
from tests.engine.single_run import NEAREST, SingleRun
from tests.fixtures.known_models import UNTARGETED, binary, rows_of
from tests.fixtures.rejecting_defenses import (
    SMALL_STEPS,
    accepts_between,
    run_on_grey_images,
)

COUNT = 4
RADIUS = Fraction(1, 5)
BORDER = binary(torch.ones(4), -2.0)
"""Class 1 where the mean of four pixels is above 0.5; the clean images are 0.45 everywhere."""


def tracked(
    attack: Attack | None = None, ball: PerturbationSet | None = None, **options: object
) -> SuccessTracker:
    """A tracker of four occupied slots in restart 2, whose items have spent 10 queries."""
    attack, ball = attack or PGD(restarts=5), ball or Linf(RADIUS)
    x, y = torch.full((COUNT, 1, 1, 4), 0.45), torch.zeros(COUNT, dtype=torch.int64)
    slots = SlotArray(rows_of(attack, BORDER, x, y, ball))
    every = np.arange(COUNT)
    slots.begin(every, every, np.full(COUNT, 2))
    slots.problem.ledger.charge(slots.problem.active, 10, 7)
    spec = replace(SingleRun(attack, count=COUNT).spec(), x=x, y=y, ball=ball, **options)  # type: ignore[arg-type]
    return SuccessTracker(spec, slots)


def observe(
    tracker: SuccessTracker, level: float | list[float], step: int, charged: Tensor | None = None
) -> None:
    """Observes grey images of these levels, queried after so many steps."""
    problem = tracker.slots.problem
    images = torch.tensor(level).expand(COUNT)[:, None, None, None].expand_as(problem.x)
    charged = problem.active if charged is None else charged
    tracker.observe(images, BORDER(images), charged, torch.full((COUNT,), step))


def test_a_first_success_is_recorded_with_step_restart_and_cost() -> None:
    tracker = tracked()
    observe(tracker, [0.49, 0.51, 0.49, 0.6], step=3)
    assert tracker.found.tolist() == [False, True, False, True]
    assert tracker.step.tolist() == [-1, 3, -1, 3]
    assert tracker.restart.tolist() == [-1, 2, -1, 2]
    assert tracker.forwards.tolist() == [0, 10, 0, 10]
    assert tracker.gradients.tolist() == [0, 7, 0, 7]
    assert torch.allclose(tracker.image[:, 0, 0, 0], torch.tensor([0.45, 0.51, 0.45, 0.6]))


def test_a_later_success_changes_neither_image_nor_cost() -> None:
    tracker = tracked()
    observe(tracker, 0.55, step=3)
    tracker.slots.problem.ledger.charge(tracker.slots.problem.active, 5, 5)
    observe(tracker, 0.6, step=4)
    candidates = tracker.candidates(np.array([1, 3]))
    assert candidates.step.tolist() == [3, 3] and candidates.item.tolist() == [1, 3]
    assert candidates.forwards.tolist() == [10, 10] and candidates.gradients.tolist() == [7, 7]
    assert candidates.restart.tolist() == candidates.final_checks.tolist() == [2, 2]
    assert (
        torch.allclose(candidates.image, torch.tensor(0.55)) and candidates.distance.isinf().all()
    )


def test_queries_that_are_not_charged_are_not_recorded() -> None:
    tracker = tracked()
    observe(tracker, 0.6, step=0, charged=torch.tensor([True, False, True, False]))
    assert tracker.found.tolist() == [True, False, True, False]


@pytest.mark.parametrize("level", [0.45, 0.66, 0.9])
def test_a_right_answer_and_an_image_outside_the_ball_are_no_success(level: float) -> None:
    tracker = tracked()
    observe(tracker, level, step=0)
    assert not tracker.found.any() and (tracker.step == -1).all()


def test_an_image_outside_the_box_is_no_success() -> None:
    for attack in (PGD(), Boundary()):
        tracker = tracked(attack, Linf(Fraction(1)))
        observe(tracker, 1.01, step=0)
        assert not tracker.found.any() and (tracker.step == -1).all()


def test_a_minimising_attack_records_the_nearest_success_outside_the_ball() -> None:
    tracker = tracked(Boundary(), L2(Fraction(1, 20)))
    for step, level in enumerate((0.9, 0.6, 0.7)):
        observe(tracker, level, step)
    assert (tracker.step == 1).all() and not tracker.found.any()
    assert torch.allclose(tracker.distance, torch.tensor(0.3))
    assert torch.allclose(tracker.image, torch.tensor(0.6))


def test_a_minimising_attack_claims_its_first_success_inside_the_ball() -> None:
    tracker = tracked(Boundary(), L2(Fraction(1, 4)))
    for step, level in enumerate((0.9, 0.56, 0.52)):
        observe(tracker, level, step)
    assert tracker.found.all() and (tracker.step == 1).all()
    assert (tracker.forwards == 10).all()


def test_the_goal_nearest_claims_nothing_and_keeps_on_approaching() -> None:
    tracker = tracked(Boundary(), L2(Fraction(1, 4)), goal=NEAREST)
    for step, level in enumerate((0.9, 0.56, 0.52)):
        observe(tracker, level, step)
    assert not tracker.found.any() and (tracker.step == 2).all()


def test_a_refused_claim_is_forgotten_and_a_later_success_recorded() -> None:
    tracker = tracked()
    tracker.slots.item[:] = [5, 6, 7, 8]
    observe(tracker, 0.55, step=3)
    confirmed_items = list[list[int]]()

    def confirm(items: Tensor, images: Tensor) -> Tensor:
        confirmed_items.append(items.tolist())
        return items == 7

    claimed = torch.tensor([True, False, True, False])
    assert tracker.confirmed(claimed, confirm).tolist() == [False, False, True, False]
    assert confirmed_items == [[5, 7]]
    assert tracker.found.tolist() == [False, True, True, True]
    observe(tracker, 0.6, step=4)
    assert tracker.step.tolist() == [4, 3, 3, 3]


def test_no_claim_costs_no_confirmation() -> None:
    def confirm(items: Tensor, images: Tensor) -> Tensor:
        raise AssertionError("nothing is claimed")

    assert not tracked().confirmed(torch.zeros(COUNT, dtype=torch.bool), confirm).any()


@dataclass(frozen=True)
class Unhurried(PGD):
    """PGD that only its last step ends."""

    stop_rule: StopRule = StopRule.NEVER


def test_recent_successes_are_counted_where_they_end_a_restart() -> None:
    for attack, recent in ((PGD(), 2), (Unhurried(), 0)):
        tracker = tracked(attack)
        observe(tracker, [0.6, 0.6, 0.45, 0.45], step=0)
        assert tracker.recent == recent and tracker.found.sum() == 2


def test_slots_that_are_kept_keep_their_successes() -> None:
    tracker = tracked()
    observe(tracker, [0.51, 0.52, 0.45, 0.53], step=3)
    tracker.slots.keep(np.array([1, 2]))
    tracker.keep(torch.tensor([1, 2]))
    assert tracker.found.tolist() == [True, False] and tracker.step.tolist() == [3, -1]
    assert torch.allclose(tracker.image[0], torch.tensor(0.52))
    assert tracker.forwards.tolist() == [10, 0] and tracker.gradients.tolist() == [7, 0]


def test_the_nearest_success_of_a_final_check_replaces_the_recorded_one() -> None:
    from bench.engine.cell_spec import NearestCandidates

    tracker = tracked(Boundary(), L2(Fraction(1, 20)), goal=NEAREST)
    observe(tracker, 0.9, step=0)
    image = torch.full((1, 1, 1, 4), 0.55)
    one = torch.ones(1, dtype=torch.int64)
    nearest = NearestCandidates(image, torch.tensor([0.2], dtype=torch.float64), 8 * one, one)
    tracker.set_nearest(np.array([3]), nearest)
    assert tracker.step.tolist() == [0, 0, 0, 8] and tracker.restart.tolist() == [2, 2, 2, 1]
    assert torch.equal(tracker.image[3], image[0]) and tracker.distance[3] == torch.tensor(0.2)
    assert UNTARGETED.kind != NEAREST.kind


def test_a_success_must_be_wrong_and_accepted() -> None:
    """Wrong from step 3 on (0.51), accepted between 0.54 and 0.58 only: that is step 5."""
    found = run_on_grey_images(SMALL_STEPS, accepts_between(0.54, 0.58))
    assert found.broken.all() and (found.step == 5).all()
    assert torch.allclose(found.image[:, 0, 0, 0], torch.tensor(0.55))


def test_an_attack_without_a_wrong_and_accepted_iterate_does_not_succeed() -> None:
    found = run_on_grey_images(replace(SMALL_STEPS, rate=0.2), accepts_between(0.54, 0.56))
    assert not found.broken.any()

"""Tests of bench.engine.slots: the host and device copies of each slot's state always agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.engine.slots import EMPTY_SLOT, SlotArray, slot_indices
from plugins.attacks.pgd import PGD
from tests.engine.single_run import LINF
from tests.fixtures.known_models import digits, rows_of, small_cnn


def slot_array(count: int = 6) -> SlotArray:
    """So many empty slots over the first digits."""
    return SlotArray(rows_of(PGD(), small_cnn(), *digits(count), LINF))


def begin(slots: SlotArray, chosen: list[int], item: list[int], restart: list[int]) -> None:
    slots.begin(*(np.array(column, dtype=np.int64) for column in (chosen, item, restart)))


def assert_copies_agree(slots: SlotArray) -> None:
    problem, occupied = slots.problem, slots.occupied
    assert slots.device_occupied.tolist() == occupied.tolist()
    assert slots.count == int(problem.active.sum()) + int(slots.converged.sum())
    assert not (problem.active & slots.converged).any()
    assert problem.t.tolist() == slots.step.tolist()
    assert problem.restart[torch.from_numpy(occupied)].tolist() == slots.restart[occupied].tolist()
    assert len(slots) == len(problem.x) == len(slots.last_image) == len(slots.last_step)


def test_all_slots_are_empty_at_first() -> None:
    slots = slot_array()
    assert slots.item.tolist() == [EMPTY_SLOT] * 6 and not slots.problem.active.any()
    assert slots.empty(4).tolist() == [0, 1, 2, 3] and slots.count == 0
    assert_copies_agree(slots)


def test_begin_sets_item_restart_and_step_and_the_keys_of_random_numbers() -> None:
    slots = slot_array()
    begin(slots, [1, 4], [30, 40], [0, 2])
    keys = slots.problem.key.clone()
    slots.tick()
    begin(slots, [4], [40], [3])
    assert slots.item.tolist() == [EMPTY_SLOT, 30, EMPTY_SLOT, EMPTY_SLOT, 40, EMPTY_SLOT]
    assert slots.restart[[1, 4]].tolist() == [0, 3] and slots.step[[1, 4]].tolist() == [1, 0]
    assert slots.problem.active.tolist() == [False, True, False, False, True, False]
    assert (slots.problem.key != keys).tolist() == [False] * 4 + [True, False]
    assert_copies_agree(slots)


def test_a_tick_counts_one_step_in_occupied_slots_and_none_in_empty_ones() -> None:
    slots = slot_array(3)
    begin(slots, [0, 2], [7, 8], [0, 0])
    for _ in range(5):
        slots.tick()
    assert slots.step.tolist() == slots.problem.t.tolist() == [5, 0, 5]


def test_advance_counts_the_steps_of_each_named_slot() -> None:
    slots = slot_array(4)
    begin(slots, [0, 1, 3], [7, 8, 9], [0, 0, 0])
    slots.tick()
    slots.advance(torch.tensor([3, 0]), torch.tensor([10, 2]))
    assert slots.step.tolist() == slots.problem.t.tolist() == [3, 1, 0, 11]


def test_a_converged_slot_keeps_iterate_and_step_and_is_occupied_but_not_active() -> None:
    slots = slot_array(3)
    begin(slots, [0, 1, 2], [7, 8, 9], [0, 0, 0])
    slots.tick()
    images = 1 - slots.problem.x
    slots.converge(torch.tensor([False, True, False]), images)
    slots.tick()
    assert slots.problem.active.tolist() == [True, False, True]
    assert slots.occupied.tolist() == [True] * 3
    assert torch.equal(slots.last_image[1], images[1])
    assert torch.equal(slots.last_image[::2], slots.problem.x[::2])
    assert slots.last_step.tolist() == [0, 1, 0]
    assert_copies_agree(slots)
    begin(slots, [1], [8], [1])
    assert slots.problem.active.all() and not slots.converged.any()


def test_a_cleared_slot_is_empty_and_takes_the_next_item_at_step_zero() -> None:
    slots = slot_array(3)
    begin(slots, [0, 1, 2], [7, 8, 9], [0, 0, 0])
    slots.tick()
    slots.converge(torch.tensor([False, True, False]), slots.problem.x)
    slots.clear(np.array([1, 2]))
    assert slots.item.tolist() == [7, EMPTY_SLOT, EMPTY_SLOT] and slots.step.tolist() == [1, 0, 0]
    assert slots.empty(1).tolist() == [1] and slots.empty(9).tolist() == [1, 2]
    assert_copies_agree(slots)


def test_items_are_found_in_their_slots() -> None:
    slots = slot_array(5)
    begin(slots, [0, 2, 4], [9, 8, 7], [0, 0, 0])
    assert slots.holding(torch.tensor([7, 9, 33])).tolist() == [0, 4]
    assert slots.holding_each(torch.tensor([7, 9])).tolist() == [4, 0]
    assert slots.holding(torch.tensor([EMPTY_SLOT])).tolist() == []


def test_keep_drops_all_other_slots() -> None:
    slots = slot_array(5)
    begin(slots, [0, 2, 4], [9, 8, 7], [1, 2, 3])
    slots.tick()
    slots.converge(torch.tensor([False, False, False, False, True]), 1 - slots.problem.x)
    last = slots.last_image[4].clone()
    where = slots.keep(np.array([2, 4]))
    assert where.tolist() == [2, 4] and slots.item.tolist() == [8, 7]
    assert slots.restart.tolist() == [2, 3] and slots.last_step.tolist() == [0, 1]
    assert torch.equal(slots.last_image[1], last)
    assert slots.problem.example.tolist() == [2, 4]
    assert_copies_agree(slots)


@pytest.mark.parametrize("seed", range(5))
def test_both_copies_agree_after_any_sequence_of_changes(seed: int) -> None:
    draw, slots = np.random.default_rng(seed), slot_array(8)
    for item in range(60):
        some = np.flatnonzero(draw.random(len(slots)) < 0.4)
        change = draw.integers(5)
        if change == 0:
            begin(slots, some.tolist(), [item] * len(some), [item % 3] * len(some))
        elif change == 1:
            slots.clear(some)
        elif change == 2:
            converging = torch.from_numpy(slots.occupied & (draw.random(len(slots)) < 0.4))
            slots.converge(converging, slots.problem.x)
        elif change == 3:
            where = slot_indices(slots.device_occupied)
            slots.advance(torch.from_numpy(where), torch.full((len(where),), 2))
        slots.tick()
        if item == 40:
            slots.keep(np.arange(2, 7))
        assert_copies_agree(slots)

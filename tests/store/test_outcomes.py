"""Recording of outcomes: committed items are kept, and no item is recorded twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.core.machines import Machine
from bench.core.outcomes import Chunk, Verdict
from bench.store import Store
from bench.store.records import CellFigures
from tests.store.chunks import leased, planned, same_bits, tiny_chunk
from tests.store.workers import tiny_outcomes


def test_an_item_recorded_before_is_refused_and_nothing_of_its_chunk_is_kept(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(0, 4))
    for twice in ((4, 5), (1, 1), (0, 4)):
        with pytest.raises(BenchError, match="is already recorded"):
            store.record(lease, tiny_chunk(*twice))
    store.record(lease, tiny_chunk(1, 3))
    assert store.finished_items(key).tolist() == [0, 1, 3, 4]
    assert store.cells()[0].items_done == 4


def test_more_outcomes_than_items_are_refused(store: Store) -> None:
    key = planned(store, items=2)
    with pytest.raises(BenchError, match="has 2 items and got 3 outcomes"):
        store.record(leased(store, key), tiny_chunk(0, 1, 2))


def test_an_incomplete_cell_is_not_finished(store: Store) -> None:
    key = planned(store, items=3)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(0, 1))
    with pytest.raises(BenchError, match="2 of 3 outcomes"):
        store.finish(lease)
    assert store.cells()[0].state is CellState.RUNNING


def test_an_empty_chunk_only_keeps_the_lease(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    store.record(lease, tiny_chunk())
    assert store.cells()[0].seconds == 0.5
    assert store.finished_items(key).dtype == np.int32


def test_outcomes_come_back_in_item_order_as_they_were_given(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    for part in ((5, 2), (0, 4, 1), (3,)):
        store.record(lease, tiny_chunk(*part))
    assert same_bits(store.outcomes(key), tiny_outcomes([0, 1, 2, 3, 4, 5]))
    assert len(store.outcomes("unknown").item) == 0


def test_the_figures_follow_from_the_outcomes(store: Store) -> None:
    key = planned(store, items=6)
    verdicts = [Verdict.BROKEN, 0, Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX, 1, Verdict.NOT_FINITE]
    found = tiny_outcomes([0, 1, 2, 3, 4, 5])._replace(
        verdict=np.array(verdicts, np.uint8),
        eight_bit=np.array([1, 1, 0, 0, 0, 0], np.bool_),
        fragile=np.array([0, 1, 0, 0, 1, 0], np.bool_),
        distance=np.array([0.25, 9, 9, 9, 0.5, np.inf]),
        forwards=np.full(6, 2**31 - 1, np.int32),
        gradients=np.arange(6, dtype=np.int32),
        final_checks=np.ones(6, np.int32),
    )
    lease = leased(store, key)
    store.record(lease, Chunk(found, seconds=1.25))
    assert store.cells()[0].figures is None
    store.finish(lease)
    (row,) = store.cells()
    assert row.figures == CellFigures(
        robust=4, refused=3, fragile=1, broken_8bit=1,
        forwards=6 * (2**31 - 1), gradients=15, looks=6, max_distance=0.5,
    )  # fmt: skip
    assert (row.seconds, row.state) == (1.25, CellState.DONE)
    assert store.check() == []


def test_the_machine_classes_of_a_cell_are_those_of_its_chunks(store: Store) -> None:
    """A cell that was resumed on another machine has two; a chunk without one adds none."""
    key = planned(store)
    lease = leased(store, key)
    one, two = Machine("cpu", "AVX2", "2.9.1", 1), Machine("cpu", "AVX512", "2.9.1", 1)
    for items, machine in (((0, 1), two), ((2,), one), ((3,), two), ((4,), None)):
        store.record(lease, replace(tiny_chunk(*items), machine=machine))
    assert store.machines([key, "unknown"]) == {key: (one, two)}
    assert store.machines([]) == {}
    assert store.machines([*map(str, range(1200)), key]) == {key: (one, two)}


def test_a_cell_that_nothing_broke_has_no_largest_distance(store: Store) -> None:
    key = planned(store, items=1)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(1))
    store.finish(lease)
    figures = store.cells()[0].figures
    assert figures is not None and (figures.robust, figures.max_distance) == (1, None)

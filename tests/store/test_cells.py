"""Planning and listing of cells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.core.cells import Cell, CellState, Culprit, Failure
from bench.core.errors import BenchError
from bench.store import PlannedCell, Store
from tests.store.chunks import AWAY, leased, planned, tiny_chunk
from tests.store.workers import tiny_cell


def test_planning_twice_changes_nothing(store: Store) -> None:
    plans = [PlannedCell(tiny_cell(n)) for n in range(3)]
    store.plan(plans)
    before = store.cells()
    store.plan(plans)
    assert store.cells() == before
    assert [row.cell for row in before] == [plan.cell for plan in plans]


def test_planning_leaves_running_and_done_cells_alone(store: Store) -> None:
    key = planned(store, items=2)
    lease = leased(store, key)
    skip = PlannedCell(tiny_cell(items=2), CellState.SKIPPED, "too slow")
    store.plan([skip])
    store.record(lease, tiny_chunk(0, 1))
    store.finish(lease)
    store.plan([skip])
    store.plan([PlannedCell(tiny_cell(items=2))])
    (row,) = store.cells()
    assert (row.state, row.reason, row.items_done) == (CellState.DONE, "", 2)


def test_a_failed_and_a_skipped_cell_open_again_when_planned(store: Store) -> None:
    failed, skipped = tiny_cell(0), tiny_cell(1)
    store.plan([PlannedCell(failed), PlannedCell(skipped, CellState.SKIPPED, "too slow")])
    store.fail(leased(store, failed.key), Failure(Culprit.PLUGIN, "it returned nothing."))
    told = [(row.state, row.reason, row.culprit) for row in store.cells()]
    assert told == [("failed", "it returned nothing.", "plugin"), ("skipped", "too slow", None)]
    assert store.lease(failed.key, AWAY) is None
    assert store.lease(skipped.key, AWAY) is None
    store.plan([PlannedCell(failed), PlannedCell(skipped)])
    assert {(row.state, row.reason, row.culprit) for row in store.cells()} == {
        (CellState.MISSING, "", None)
    }


def test_a_cell_that_failed_in_a_run_stays_failed_for_all_its_workers(store: Store) -> None:
    plan = PlannedCell(tiny_cell())
    before = store.clock()
    store.plan([plan], since=before)
    store.fail(leased(store, plan.cell.key), Failure(Culprit.PLUGIN, "no."))
    store.plan([plan], since=before)
    assert [(row.state, row.reason) for row in store.cells()] == [("failed", "no.")]
    store.plan([PlannedCell(plan.cell, CellState.NOT_APPLICABLE, "never.")], since=before)
    assert [(row.state, row.reason) for row in store.cells()] == [("not applicable", "never.")]
    store.plan([plan], since=before)
    store.fail(leased(store, plan.cell.key), Failure(Culprit.PLUGIN, "no."))
    store.plan([plan], since=store.clock())
    assert [(row.state, row.reason) for row in store.cells()] == [("missing", "")]


def test_a_renamed_attack_keeps_its_figures(store: Store) -> None:
    key = planned(store, items=1)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(0))
    store.finish(lease)
    store.plan([PlannedCell(replace(tiny_cell(items=1), attack="new", threat="u"), required=True)])
    (row,) = store.cells(threat="u")
    assert (row.key, row.cell.attack, row.required, row.state) == (key, "new", True, "done")


def test_two_cells_that_share_a_key_are_refused() -> None:
    from bench.store.cells import _by_key

    with pytest.raises(BenchError, match="'a0' against 'd' on 't' and 'surrogate' against"):
        _by_key([PlannedCell(tiny_cell()), PlannedCell(replace(tiny_cell(), attack="surrogate"))])


def test_cells_are_found_by_threat_examples_mode_and_key(store: Store) -> None:
    first = tiny_cell(0)
    others = [
        Cell("u", "d", "a", "1", "2", "3", "ex", 1),
        Cell("t", "d", "a", "1", "2", "3", "other", 1),
        Cell("t", "d", "a", "1", "2", "3", "ex", 1, mode="rank"),
    ]
    store.plan([PlannedCell(cell) for cell in [first, *others]])
    assert len(store.cells()) == 4
    assert [row.key for row in store.cells("t", "ex", "full")] == [first.key]
    for cell in others:
        assert [row.cell for row in store.cells(key=cell.key)] == [cell]
    assert store.cells(key="none") == []

"""Seals: every write seals its row, and the root covers results but not the way to them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sqlalchemy import select, text

from bench.core.cells import CellState, Culprit, Failure
from bench.store import EvidenceRow, PlannedCell, Store, seals
from bench.store.tables import CELLS, SEALS
from tests.store.chunks import leased, planned, tiny_chunk
from tests.store.workers import tiny_outcomes


def stored(store: Store) -> dict[tuple[str, str], str]:
    """Every seal by kind and key."""
    with store.reading() as connection:
        return {(row.kind, row.key): row.digest for row in connection.execute(select(SEALS))}


def expected(store: Store) -> dict[tuple[str, str], str]:
    """The seals that the rows of the database give when all are sealed again."""
    with store.writing() as connection:
        connection.execute(text("delete from seals"))
        seals.seal_all(connection)
    return stored(store)


def finish(store: Store, key: str, *chunks: tuple[int, ...]) -> None:
    lease = leased(store, key)
    for items in chunks:
        store.record(lease, tiny_chunk(*items))
    store.finish(lease)


def test_each_step_of_a_cell_leaves_the_seals_of_its_rows(store: Store) -> None:
    key = planned(store, items=4)
    found = [stored(store)]
    lease = leased(store, key)
    found.append(stored(store))
    store.record(lease, tiny_chunk(0, 1))
    store.record(lease, tiny_chunk(3))
    assert stored(store) == expected(store)
    store.fail(lease, Failure(Culprit.PLUGIN, "It was wrong."))
    found.append(stored(store))
    assert found[-1] == expected(store)
    (row,) = store.cells()
    store.plan([PlannedCell(row.cell)])
    assert stored(store) == expected(store)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(2))
    store.finish(lease)
    assert stored(store) == expected(store)
    assert all(one != other for one, other in pairwise([*found, stored(store)]))
    assert stored(store)["outcomes", key] == seals.outcomes_digest(store.outcomes(key))


def test_other_tables_are_sealed_when_they_are_written(store: Store) -> None:
    store.record_evidence("d", "dd", "ex", EvidenceRow("saturation", "warning", "It is.", "s"))
    store.record_submission_state("mine", "received")
    store.record_submission_state("mine", "queued", "It waits.")
    assert len(stored(store)) == 3
    assert stored(store) == expected(store)
    store.record_evidence("d", "dd", "ex", EvidenceRow("saturation", "passed", "It is not.", "s"))
    assert len(stored(store)) == 3
    assert stored(store) == expected(store)


def test_the_root_depends_on_outcomes_and_not_on_chunks_times_and_leases(store: Store) -> None:
    roots = []
    for parts in ([(0, 1), (2, 3)], [(3,), (1, 0, 2)]):
        with store.writing() as connection:
            for table in ("seals", "chunks", "cells", "examples"):
                connection.execute(text(f"delete from {table}"))
        key = planned(store, items=4)
        finish(store, key, *parts)
        with store.writing() as connection:
            connection.execute(CELLS.update().values(fence=7, owner="other", attempts=2))
        roots.append(store.root())
    assert roots[0] == roots[1]
    lease = leased(store, planned_other(store))
    assert store.root() not in roots
    store.record(lease, tiny_chunk(0))
    before = store.root()
    store.finish(lease)
    assert store.root() != before


def planned_other(store: Store) -> str:
    """A second cell, of one item."""
    (row,) = (row for row in store.cells() if row.state == CellState.DONE)
    other = replace(row.cell, seed=1, items=1)
    store.plan([PlannedCell(other)])
    return other.key


def test_the_root_is_that_of_a_tree_of_sha256() -> None:
    def leaf(*parts: str) -> bytes:
        written = "[" + ",".join(f'"{part}"' for part in parts) + "]"
        return hashlib.sha256(b"\0" + written.encode()).digest()

    def node(left: bytes, right: bytes) -> bytes:
        return hashlib.sha256(b"\1" + left + right).digest()

    leaves = [("cells", str(number), "d") for number in range(3)]
    one, two, three = (leaf(*parts) for parts in leaves)
    assert seals.merkle_root(leaves) == node(node(one, two), three).hex()
    assert seals.merkle_root([]) == hashlib.sha256(b"").hexdigest()
    assert seals.merkle_root(leaves[:1]) == one.hex()


@pytest.mark.parametrize("column", ["robust", "tier", "required", "threat", "attack"])
def test_the_content_of_a_cell_is_in_the_root(store: Store, column: str) -> None:
    key = planned(store, items=2)
    finish(store, key, (0, 1))
    before = store.root()
    with store.writing() as connection:
        changes = {"required": "not required", "robust": "robust + 1"}
        value = changes.get(column, f"{column} || 1")
        connection.execute(text(f"update cells set {column} = {value}"))
        seals.seal_leased(connection, CELLS, [key])
    assert store.root() != before


def test_shares_of_draws_are_sealed_and_change_no_digest_of_outcomes_without_them() -> None:
    """The first digest was computed before outcomes had the column."""
    plain = tiny_outcomes([4, 5, 6])
    old = hashlib.sha256(b"3")
    for column in plain[:-1]:
        old.update(column.tobytes())
    assert seals.outcomes_digest(plain) == old.hexdigest()
    shares = [plain._replace(share=np.array([0.25, -1, last], np.float32)) for last in (0.5, 0.75)]
    assert len({seals.outcomes_digest(one) for one in (plain, *shares)}) == 3

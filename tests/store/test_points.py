"""Points of parametric perturbation sets are stored, read and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from bench.core.outcomes import Chunk
from bench.store import Store
from bench.store.repair import repair
from tests.store.chunks import leased, planned
from tests.store.workers import tiny_outcomes


def points_of(*items: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Points [n, 3] of items."""
    draws = np.random.default_rng(3).random((99, 3), dtype=np.float32)
    return draws[list(items)]


def recorded(store: Store) -> str:
    """A cell with the points of four items in two chunks."""
    key = planned(store)
    lease = leased(store, key)
    for items in ([5, 2], [0, 3]):
        store.record(lease, Chunk(tiny_outcomes(items), 0.0, points=points_of(*items)))
    return key


def test_points_come_back_bit_for_bit_in_item_order(store: Store) -> None:
    key = recorded(store)
    found = store.points(key)
    assert found is not None
    assert found[0].tolist() == [0, 2, 3, 5]
    assert found[1].tobytes() == points_of(0, 2, 3, 5).tobytes()
    assert found[1].shape == (4, 3) and store.check() == []


def test_a_norm_ball_has_no_points(store: Store) -> None:
    key = planned(store)
    store.record(leased(store, key), Chunk(tiny_outcomes([1]), 0.0))
    assert store.points(key) is None and store.check() == []


def test_a_chunk_without_some_items_has_no_points_of_them() -> None:
    chunk = Chunk(tiny_outcomes([1, 4, 7]), 0.0, points=points_of(1, 4, 7))
    left = chunk.without([4])
    assert left.points is not None and left.points.tobytes() == points_of(1, 7).tobytes()


CHANGES = {
    "another value": ("UPDATE points SET points = zeroblob(length(points))", "points", ""),
    "a missing value": ("UPDATE points SET points = x'00'", "points", "has 1 bytes"),
    "another shape": ("UPDATE points SET shape = '[2]'", "points", "16 were expected"),
    "no shape": ("UPDATE points SET shape = 'three'", "shape", "not a list of sizes"),
    "another chunk": ("UPDATE points SET start = start + 50", "start", "belongs to no chunk"),
    "a lost row": ("DELETE FROM points WHERE start = 2", "", ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_points_are_found_with_their_place_and_removed(tmp_path: Path, change: str) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    statement, column, said = CHANGES[change]
    with Store.open(url) as store:
        key = recorded(store)
        store.write(lambda connection: connection.execute(text(statement)))
        faults = [fault for fault in store.check() if fault.table == "points"]
    assert faults and all(key in fault.key for fault in faults)
    assert any(said in fault.text for fault in faults)
    assert not column or any(fault.column in (column, "") for fault in faults)
    repair(url)
    with Store.open(url) as store:
        assert store.check() == [] and store.cells() == []

"""Points that are fitted to the training half are stored once, read and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from bench.core.errors import BenchError
from bench.core.fitted import FittedPoint
from bench.core.outcomes import Chunk
from bench.store import LeaseLostError, Store
from bench.store.repair import repair
from tests.store.chunks import expire, leased, planned
from tests.store.workers import tiny_outcomes

POINT = np.random.default_rng(3).random((1, 2, 3), dtype=np.float32)
FITTED = FittedPoint(POINT, "half", 12_000_000_000, 400, 2.5)


def recorded(store: Store) -> str:
    """A cell with a fitted point and one chunk."""
    key = planned(store)
    lease = leased(store, key)
    store.record_fit(lease, FITTED)
    store.record(lease, Chunk(tiny_outcomes([5, 2]), 0.0))
    return key


def test_a_point_comes_back_bit_for_bit_with_its_cost(store: Store) -> None:
    key = recorded(store)
    found = store.fit(key)
    assert found is not None and found.point.tobytes() == POINT.tobytes()
    assert found.point.shape == (1, 2, 3)
    assert (found.training, found.forwards, found.gradients, found.seconds, found.machine) == (
        "half", 12_000_000_000, 400, 2.5, None,
    )  # fmt: skip
    assert store.fits([key, "other"]).keys() == {key} and store.check() == []


def test_a_cell_has_at_most_one_point_and_another_has_none(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    assert store.fit(key) is None
    store.record_fit(lease, FITTED)
    with pytest.raises(BenchError, match="has a fitted point already"):
        store.record_fit(lease, FITTED)
    assert store.check() == []


def test_a_worker_whose_lease_is_lost_stores_no_point(store: Store) -> None:
    key = planned(store)
    late = leased(store, key)
    expire(store, key)
    leased(store, key, "18@another-host#7")
    with pytest.raises(LeaseLostError):
        store.record_fit(late, FITTED)
    assert store.fit(key) is None


CHANGES = {
    "another value": ("UPDATE fits SET point = zeroblob(length(point))", ""),
    "a missing value": ("UPDATE fits SET point = x'00'", "has 1 bytes, 24 were expected"),
    "no shape": ("UPDATE fits SET shape = 'three'", "not a list of sizes"),
    "another cost": ("UPDATE fits SET gradients = 1", ""),
    "another half": ("UPDATE fits SET training = 'x'", ""),
    "a lost row": ("DELETE FROM fits", ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_point_is_found_and_its_cell_removed(tmp_path: Path, change: str) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    statement, said = CHANGES[change]
    with Store.open(url) as store:
        key = recorded(store)
        store.write(lambda connection: connection.execute(text(statement)))
        faults = [fault for fault in store.check() if fault.table == "fits"]
    assert faults and all(key in fault.key for fault in faults)
    assert any(said in fault.text for fault in faults)
    repair(url)
    with Store.open(url) as store:
        assert store.check() == [] and store.cells() == []

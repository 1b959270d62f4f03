"""Second evaluations stand beside the first, which never changes."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text

from bench.core.errors import BenchError
from bench.core.machines import Machine
from bench.core.outcomes import Outcomes
from bench.store import Store, seals
from tests.store.chunks import leased, planned, same_bits, tiny_chunk
from tests.store.workers import tiny_outcomes

ONE = Machine("cpu", "AVX512", "2.0", 1)
OTHER = Machine("cpu", "DEFAULT", "2.0", 1)
FIRST = tiny_outcomes([0, 1, 2, 3])
SECOND = FIRST._replace(verdict=1 - FIRST.verdict)


@pytest.fixture
def key(store: Store) -> str:
    """A finished cell of four items in two chunks."""
    key = planned(store, items=4)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(2, 3))
    store.record(lease, tiny_chunk(0, 1))
    store.finish(lease)
    return key


def test_a_second_evaluation_is_stored_beside_the_first(store: Store, key: str) -> None:
    assert store.replications([key]) == {}
    before = store.cells()
    same = store.insert_replication(key, ONE, FIRST)
    other = store.insert_replication(key, OTHER, SECOND)
    assert (same.differ, other.differ) == (0, 4)
    assert store.replications([key, "unknown"]) == {key: (same, other)}
    assert same_bits(store.replicated_outcomes(other), SECOND)
    assert same_bits(store.outcomes(key), FIRST) and store.cells() == before
    assert store.check() == []


def test_second_evaluations_and_weights_do_not_change_the_root(store: Store, key: str) -> None:
    def root() -> str:
        with store.reading() as connection:
            return seals.root(connection)

    before = root()
    store.insert_replication(key, OTHER, SECOND)
    store.insert_weights("abc", b"weights", '{"finished": 1}', OTHER)
    assert root() == before
    with store.writing() as connection:
        connection.execute(text("update seals set digest = 'x' where kind = 'outcomes'"))
    assert root() != before


def test_nothing_that_is_stored_is_overwritten(store: Store, key: str) -> None:
    first = store.insert_replication(key, ONE, FIRST)
    assert store.insert_replication(key, ONE, FIRST) == first, "the same result, kept once"
    store.insert_replication(key, ONE, SECOND)
    store.insert_replication(key, OTHER, FIRST)
    found = store.replications([key])[key]
    assert [(one.machine, one.differ) for one in found] == [(ONE, 0), (ONE, 4), (OTHER, 0)]
    assert found[0] == first


@pytest.mark.parametrize(
    "items", [[0, 1, 2], [0, 1, 2, 4], [1, 0, 2, 3]], ids=["fewer", "others", "another order"]
)
def test_outcomes_of_other_items_are_refused(store: Store, key: str, items: list[int]) -> None:
    with pytest.raises(BenchError, match="not of the 4 items of the first"):
        store.insert_replication(key, ONE, tiny_outcomes(items))
    assert store.replications([key]) == {}


def test_only_a_finished_cell_has_a_second_evaluation(store: Store) -> None:
    key = planned(store, items=4)
    with pytest.raises(BenchError, match="is missing: only a finished cell"):
        store.insert_replication(key, ONE, FIRST)
    with pytest.raises(BenchError, match="not in the database: only a finished cell"):
        store.insert_replication("unknown", ONE, FIRST)


ALTERED = {
    "outcomes": "update replications set outcomes = {blob}",
    "digest": "update replications set digest = 'x'",
    "differ": "update replications set differ = 3",
    "machine": "update replications set machine = '{{}}'",
    "all": "delete from replications",
}


@pytest.mark.parametrize("column", ALTERED)
def test_an_altered_second_evaluation_is_named(store: Store, key: str, column: str) -> None:
    store.insert_replication(key, OTHER, SECOND)
    blob = "decode('00', 'hex')" if "postgresql" in store.url else "x'00'"
    with store.writing() as connection:
        connection.execute(text(ALTERED[column].format(blob=blob)))
    found = store.check()
    assert found and {fault.table for fault in found} == {"replications"}


def test_outcomes_in_a_format_without_margins_can_be_compared(store: Store, key: str) -> None:
    older = Outcomes._make(np.array(column) for column in FIRST)
    assert np.isnan(older.loss).all()
    assert store.insert_replication(key, ONE, older).differ == 0

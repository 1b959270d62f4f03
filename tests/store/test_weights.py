"""Weights in the database: the first ones stay, and damaged ones are refused."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from sqlalchemy import text

from bench.core.errors import BenchError
from bench.core.machines import Machine
from bench.store import Lease, LeaseLostError, Store, process_id, weights
from tests.store.chunks import AWAY
from tests.store.workers import killed_at

MACHINE = Machine("cpu", "AVX2", "2.0", 1)
FIRST, SECOND = b"weights of the first machine", b"weights of the second machine"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def training_lease(store: Store, owner: str = AWAY) -> Lease:
    lease = store.lease_task("weights:abc", owner)
    assert lease is not None
    return lease


def test_the_first_weights_of_a_recipe_stay(store: Store) -> None:
    assert store.weights_digest("abc") is None and store.weights("abc") is None
    store.insert_weights("abc", FIRST, '{"epochs": 3}', MACHINE)
    store.insert_weights("abc", SECOND, "{}", None)
    store.insert_weights("def", SECOND, "{}", None)
    assert store.weights_digest("abc") == digest(FIRST)
    found = store.weights("abc")
    assert found is not None
    assert (found.content, found.digest, found.record) == (FIRST, digest(FIRST), '{"epochs": 3}')
    assert json.loads(found.machine)["cpu_capability"] == "AVX2"
    other = store.weights("def")
    assert other is not None and (other.content, other.machine) == (SECOND, "")
    assert store.check() == []


def test_weights_and_the_end_of_their_lease_are_one_commit(store: Store) -> None:
    lease = training_lease(store)
    store.commit_training(lease, "abc", FIRST, "{}", MACHINE)
    assert store.weights_digest("abc") == digest(FIRST)
    late = training_lease(store)
    assert late.fence == lease.fence + 1
    with pytest.raises(LeaseLostError):
        store.commit_training(lease, "def", SECOND, "{}", MACHINE)
    assert store.weights_digest("def") is None
    store.commit_training(late, "abc", SECOND, "{}", MACHINE)
    assert store.weights_digest("abc") == digest(FIRST)


def killed(store: Store, at: int) -> bool:
    """Train in a child that is killed before its statement or commit number `at`."""
    store._engine.dispose()  # a child must not use the connections of this process

    def train() -> None:
        lease = training_lease(store, process_id())
        store.commit_training(lease, "abc", FIRST, "{}", MACHINE)

    return killed_at(at, train)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_a_kill_in_the_middle_of_the_commit_leaves_no_weights_and_the_recipe_open(
    store: Store,
) -> None:
    at = 1
    while killed(store, at):
        assert store.weights_digest("abc") is None
        at += 1
    assert at > 8
    assert store.weights_digest("abc") == digest(FIRST)
    assert store.check() == []


@pytest.mark.parametrize(
    "damage",
    ["update weights set content = {other}", "update weights set digest = 'x'"],
    ids=["content", "digest"],
)
def test_damaged_weights_are_refused_and_named(store: Store, damage: str) -> None:
    store.insert_weights("abc", FIRST, "{}", MACHINE)
    store.insert_weights("def", SECOND, "{}", MACHINE)
    other = "decode('00', 'hex')" if "postgresql" in store.url else "x'00'"
    with store.writing() as connection:
        connection.execute(text(damage.format(other=other) + " where recipe = 'abc'"))
    with pytest.raises(BenchError, match=r"recipe abc in the database are damaged .*backup\.$"):
        store.weights("abc")
    assert store.weights("def") is not None
    found = store.check()
    assert found and {(fault.table, fault.key) for fault in found} == {("weights", "abc")}


def test_a_file_that_is_too_large_for_a_database_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MOST_BYTES", len(FIRST))
    store.insert_weights("abc", FIRST, "{}", None)
    with pytest.raises(BenchError, match="29 bytes, a database holds at most 28 of one recipe"):
        store.insert_weights("def", SECOND, "{}", None)
    assert store.weights_digest("def") is None

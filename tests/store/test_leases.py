"""Leases: of many owners one may write, and none after its lease is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import update

from bench.core.cells import CellState, Culprit, Failure
from bench.core.errors import BenchError
from bench.store import Lease, LeaseLostError, PlannedCell, Store, process_id
from bench.store.leases import SILENT_SECONDS
from bench.store.tables import CELLS, TASKS
from tests.store.chunks import AWAY, expire, leased, planned, tiny_chunk
from tests.store.workers import tiny_cell

SLEEPER = """
import sys
from bench.store.process_id import process_id
print(process_id(), flush=True)
sys.stdin.read()
"""


def test_a_leased_cell_is_not_leased_again(store: Store) -> None:
    key = planned(store)
    assert leased(store, key, process_id()).fence == 1
    assert store.lease(key, AWAY) is None
    assert store.lease(key, process_id()) is None
    assert store.lease("unknown", AWAY) is None


def test_of_many_simultaneous_requests_one_gets_the_lease(store: Store) -> None:
    key = planned(store)
    barrier, got = threading.Barrier(4), []

    def ask() -> None:
        barrier.wait()
        got.append(store.lease(key, process_id()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.fence for lease in got if lease) == [1]


def test_a_late_owner_cannot_write_once_another_has_taken_over(store: Store) -> None:
    key = planned(store, items=2)
    late = leased(store, key)
    expire(store, key)
    store.heartbeat(late)
    assert store.lease(key, AWAY) is None
    expire(store, key)
    new = leased(store, key)
    assert new.fence == late.fence + 1
    with pytest.raises(LeaseLostError, match="fence 1"):
        store.record(late, tiny_chunk(0))
    with pytest.raises(LeaseLostError, match="fence 1"):
        store.fail(late, Failure(Culprit.PLUGIN, "no."))
    for write in (store.heartbeat, store.finish, store.release):
        with pytest.raises(LeaseLostError, match="fence 1"):
            write(late)
    assert store.finished_items(key).tolist() == []
    store.record(new, tiny_chunk(0, 1))
    store.finish(new)
    with pytest.raises(LeaseLostError):
        store.record(new, tiny_chunk(2))


def test_a_lease_under_another_owners_name_cannot_write(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    with pytest.raises(LeaseLostError):
        store.heartbeat(Lease(key, "me", lease.fence))


def test_recording_extends_the_lease(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    expire(store, key)
    store.record(lease, tiny_chunk(0))
    assert store.lease(key, AWAY) is None


def test_a_dead_owner_on_this_host_frees_its_cell_at_once(store: Store) -> None:
    key = planned(store)
    script = "from bench.store.process_id import process_id; print(process_id('gpu0'))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    dead = told.stdout.decode().strip()
    # A process that started later has another start time, so a reused pid is another owner.
    assert dead.partition("#")[2] != process_id("gpu0").partition("#")[2]
    leased(store, key, dead)
    assert leased(store, key, process_id()).fence == 2


def test_a_reused_pid_is_not_its_former_owner(store: Store) -> None:
    key = planned(store)
    former = process_id().rpartition("#")[0] + "#1"
    leased(store, key, former)
    assert leased(store, key).fence == 2


def test_a_pid_of_another_host_proves_nothing(store: Store) -> None:
    key = planned(store)
    leased(store, key, process_id().replace("@", "@elsewhere."))
    assert store.lease(key, process_id()) is None


def test_a_slow_owner_who_lives_on_this_host_keeps_its_cell(store: Store) -> None:
    key = planned(store)
    command, pipe = [sys.executable, "-c", SLEEPER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as sleeper:
        assert sleeper.stdout is not None
        slow = leased(store, key, sleeper.stdout.readline().strip())
        for _ in range(3):
            expire(store, key)
            assert store.lease(key, process_id()) is None
            assert store.lease(key, AWAY) is None
        store.record(slow, tiny_chunk(0))
        expire(store, key)
        sleeper.kill()
    assert leased(store, key, process_id()).fence == 2


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    """A process of this host that prints its owner id and does nothing."""
    command, pipe = [sys.executable, "-c", SLEEPER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def owner_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_stopped_owner_loses_its_expired_lease_and_is_refused_when_it_goes_on(
    store: Store, sleeper: subprocess.Popen[str]
) -> None:
    key = planned(store)
    late = leased(store, key, owner_of(sleeper))
    sleeper.send_signal(signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    assert store.lease(key, process_id()) is None
    assert "which is stopped (last heartbeat" in store.holder_of(key)
    expire(store, key)
    assert leased(store, key, process_id()).fence == 2
    sleeper.send_signal(signal.SIGCONT)
    with pytest.raises(LeaseLostError):
        store.record(late, tiny_chunk(0))


@pytest.mark.parametrize("task", [False, True])
def test_a_silent_owner_that_runs_loses_its_lease_after_a_stated_time(
    store: Store, sleeper: subprocess.Popen[str], task: bool
) -> None:
    table = TASKS if task else CELLS
    key = "train:silent" if task else planned(store)
    lease_it = store.lease_task if task else store.lease
    late = lease_it(key, owner_of(sleeper))
    assert late is not None

    def silent_for(seconds: float) -> None:
        with store._engine.begin() as connection:
            changes = {"updated": store.clock() - seconds, "lease_until": 0.0}
            connection.execute(update(table).where(table.c.key == key).values(changes))

    silent_for(SILENT_SECONDS - 60)
    assert lease_it(key, AWAY) is None
    assert f"process {sleeper.pid} on this host (last" in store.holder_of(key, task=task)
    assert re.search("its lease ends in (1 min|59 s)", store.holder_of(key, task=task))
    silent_for(SILENT_SECONDS + 1)
    assert lease_it(key, AWAY) is not None
    assert "process 17 on another-host" in store.holder_of(key, task=task)
    with pytest.raises(LeaseLostError):
        store.heartbeat(late)


def test_a_cell_without_a_lease_has_no_holder(store: Store) -> None:
    key = planned(store)
    assert store.holder_of(key) == store.holder_of("unknown") == ""
    leased(store, key, "somewhere")
    assert store.holder_of(key).startswith("the worker 'somewhere' (last heartbeat")


def test_a_late_owner_of_another_host_is_taken_for_dead(store: Store) -> None:
    key = planned(store)
    leased(store, key, AWAY)
    expire(store, key)
    assert leased(store, key, process_id()).fence == 2


def test_an_owner_that_leases_its_own_late_cell_again_starts_anew(store: Store) -> None:
    key = planned(store)
    leased(store, key, process_id())
    assert store.lease(key, process_id()) is None
    expire(store, key)
    assert leased(store, key, process_id()).fence == 2


def test_a_released_cell_is_open_and_keeps_its_outcomes(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(3))
    store.release(lease)
    (row,) = store.cells()
    assert (row.state, row.items_done, row.owner) == (CellState.MISSING, 1, "")
    assert leased(store, key).fence == 2
    assert store.finished_items(key).tolist() == [3]


def test_three_attempts_without_an_outcome_fail_a_cell(store: Store) -> None:
    key = planned(store)
    for _ in range(3):
        leased(store, key)
        expire(store, key)
    assert store.lease(key, AWAY) is None
    (row,) = store.cells()
    assert (row.state, row.culprit) == (CellState.FAILED, Culprit.INFRASTRUCTURE)
    assert row.reason.startswith("poisoned")
    store.plan([PlannedCell(tiny_cell(items=6))])
    for _ in range(3):
        leased(store, key)
        expire(store, key)


def test_an_outcome_or_a_release_clears_the_count_of_attempts(store: Store) -> None:
    key = planned(store)
    for item in range(5):
        store.record(leased(store, key), tiny_chunk(item))
        expire(store, key)
    for _ in range(5):
        store.release(leased(store, key))
    for _ in range(3):
        leased(store, key)
        expire(store, key)


def test_a_task_has_one_owner_at_a_time(store: Store) -> None:
    lease = store.lease_task("weights:abc", process_id())
    assert lease is not None
    assert store.lease_task("weights:abc", process_id()) is None
    store.heartbeat(lease)
    store.release(lease)
    again = store.lease_task("weights:abc", AWAY)
    assert again is not None
    assert again.fence == 2
    with pytest.raises(LeaseLostError):
        store.release(lease)
    store.release(again)
    assert store.lease_task("weights:other", AWAY) is not None


def test_a_failed_task_may_be_tried_again(store: Store) -> None:
    lease = store.lease_task("train:abc", AWAY)
    assert lease is not None
    store.fail(lease, Failure(Culprit.USER, "no data."))
    assert store.lease_task("train:abc", AWAY) is not None


# The leases compared with a model.


class Leases(RuleBasedStateMachine):
    """Two owners, one cell, and leases that expire at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = Store.open(f"sqlite:///{self.folder}/bench.db")
        self.key = planned(self.store, items=6)
        self.held: list[Lease] = []
        self.acknowledged: set[int] = set()
        self.finished = 0
        self.late = False

    @property
    def valid(self) -> Lease | None:
        return self.held[-1] if self.held and not self.finished and not self.free else None

    free = True

    @rule(owner=st.sampled_from(["one", "two"]))
    def lease(self, owner: str) -> None:
        got = self.store.lease(self.key, owner)
        assert (got is not None) == (not self.finished and (self.free or self.late))
        if got:
            assert got.fence == len(self.held) + 1
            self.held.append(got)
            self.free = self.late = False

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 99), item=st.integers(0, 5))
    def record(self, pick: int, item: int) -> None:
        lease = self.held[pick % len(self.held)]
        try:
            self.store.record(lease, tiny_chunk(item))
        except LeaseLostError:
            assert lease != self.valid
        except BenchError:
            assert item in self.acknowledged
        else:
            assert lease == self.valid
            assert item not in self.acknowledged
            self.acknowledged.add(item)
            self.late = False

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 99))
    def finish(self, pick: int) -> None:
        lease = self.held[pick % len(self.held)]
        try:
            self.store.finish(lease)
        except LeaseLostError:
            assert lease != self.valid
        except BenchError:
            assert len(self.acknowledged) < 6
        else:
            assert lease == self.valid
            assert len(self.acknowledged) == 6
            self.finished += 1

    @precondition(lambda self: self.valid)
    @rule()
    def release(self) -> None:
        self.store.release(self.held[-1])
        self.free, self.late = True, False

    @precondition(lambda self: self.valid and self.acknowledged)
    @rule()
    def run_late(self) -> None:
        expire(self.store, self.key)
        with self.store._engine.begin() as connection:
            connection.execute(update(CELLS).values(attempts=0))
        self.late = True

    @invariant()
    def resume_sees_exactly_what_was_acknowledged(self) -> None:
        assert set(self.store.finished_items(self.key).tolist()) == self.acknowledged
        assert self.finished <= 1

    def teardown(self) -> None:
        assert self.store.check() == []
        self.store.close()
        shutil.rmtree(self.folder)


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

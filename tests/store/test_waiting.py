"""A server, a disk or a file that is away for a while: nothing is lost, nothing is doubled."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.core.cells import CellState, Culprit, Failure
from bench.core.errors import StorageError
from bench.core.outcomes import Chunk
from bench.store import Lease, PlannedCell, Store, waiting
from bench.store.waiting import Waiting, duration, why_not_writable
from tests.store.chunks import leased, planned, tiny_chunk
from tests.store.servers import PostgresServer, SmallDisk
from tests.store.workers import tiny_cell, tiny_outcomes


@contextmanager
def later(function: Callable[[], None], seconds: float = 0.7) -> Iterator[None]:
    """Call a function in another thread after some seconds; it has ended after the block."""
    timer = threading.Timer(seconds, function)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def waits(store: Store, limit: float = 60.0) -> list[str]:
    """Let the store wait; returns the list of its messages."""
    told: list[str] = []
    store.waiting = Waiting(limit, told.append)
    return told


@pytest.fixture
def served(postgres: PostgresServer, tmp_path: Path, monkeypatch: Any) -> Iterator[Store]:
    """A store on the server, with one cell planned."""
    monkeypatch.setenv("BENCH_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 0.1)
    with Store.open(postgres.url) as store:
        yield store


def fresh_cell(store: Store) -> str:
    """The key of a cell that no other test has planned."""
    cell = tiny_cell(time.monotonic_ns() % 10**9, items=6)
    store.plan([PlannedCell(cell)])
    return cell.key


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_restarts_is_waited_for(
    served: Store, postgres: PostgresServer, mode: str
) -> None:
    key, told = fresh_cell(served), waits(served)
    lease = leased(served, key)
    served.record(lease, tiny_chunk(0, 1))
    postgres.stop(mode)
    with later(postgres.start):
        served.record(lease, tiny_chunk(2, 3))
    served.record(lease, tiny_chunk(4, 5))
    served.finish(lease)
    assert served.finished_items(key).tolist() == list(range(6))
    assert f"process {os.getpid()} waits since" in told[0] and "more; nothing" in told[0]
    assert "goes on after a wait of" in told[-1]
    assert len(told) == 2


def test_a_wait_ends_at_its_limit_and_the_store_can_go_on(
    served: Store, postgres: PostgresServer
) -> None:
    key = fresh_cell(served)
    lease = leased(served, key)
    waits(served, limit=0.3)
    postgres.stop()
    try:
        with pytest.raises(StorageError, match=r"waited for .* ends; what is recorded is safe"):
            served.record(lease, tiny_chunk(0))
        with served.without_waiting(), pytest.raises(StorageError, match="server"):
            served.heartbeat(lease)
    finally:
        postgres.start()
    served.record(lease, tiny_chunk(0))
    assert served.finished_items(key).tolist() == [0]


def test_a_stopped_run_does_not_wait(served: Store, postgres: PostgresServer) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    served.waiting = Waiting(60.0, check=stop)
    postgres.stop()
    try:
        with pytest.raises(KeyboardInterrupt):
            served.cells()
    finally:
        postgres.start()


@contextmanager
def lost_answer(store: Store, *, committed: bool) -> Iterator[None]:
    """The connection breaks once at a commit, after or before the server has committed."""
    import psycopg

    dialect: Any = store._engine.dialect
    whole = dialect.do_commit
    calls: list[int] = []

    def commit(connection: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            whole(connection)
            return
        if committed:
            whole(connection)
        connection.dbapi_connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    dialect.do_commit = commit
    try:
        yield
    finally:
        dialect.do_commit = whole
    assert calls


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_answer_was_lost_is_written_once(served: Store, committed: bool) -> None:
    key = fresh_cell(served)
    waits(served)
    with lost_answer(served, committed=committed):
        lease = leased(served, key)
    assert lease.fence == 1
    with lost_answer(served, committed=committed):
        served.record(lease, tiny_chunk(0, 1))
    # Nothing refuses a second chunk without items or a second step: their effect would double.
    with lost_answer(served, committed=committed):
        served.record(lease, Chunk(tiny_outcomes([]), seconds=0.5))
    name = f"s{time.monotonic_ns()}"
    with lost_answer(served, committed=committed):
        served.record_submission_state(name, "received")
    with lost_answer(served, committed=committed):
        served.fail(lease, Failure(Culprit.HARNESS, "no."))
    (row,) = [row for row in served.cells() if row.key == key]
    assert (row.items_done, row.seconds, row.state) == (2, 1.0, CellState.FAILED)
    (entry,) = [entry for entry in served.submissions() if entry.name == name]
    assert len(entry.history) == 1


def test_a_transaction_of_a_stopped_process_does_not_block_the_others(
    served: Store, postgres: PostgresServer
) -> None:
    with served._engine.connect() as connection:
        shown = [
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert shown == ["30s", "1min"]


# Disks.


def exact_chunk(item: int) -> Chunk:
    images = np.random.default_rng(item).random((1, 3, 64, 64), dtype=np.float32)
    return Chunk(tiny_outcomes([item]), 0.0, exact=(np.array([item], np.int32), images))


@pytest.fixture
def on_disk(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Lease]]:
    """A database beside the small disk, on which its exact images lie."""
    monkeypatch.setenv("BENCH_ARTIFACTS", str(disk.folder / "artifacts"))
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 0.1)
    with Store.open(f"sqlite:///{disk.folder.with_name('bench.db')}") as store:
        yield store, leased(store, planned(store))


def recorded_after(store: Store, lease: Lease, free: Callable[[], None], words: str) -> None:
    """Record images while their disk takes none; `free` ends that."""
    told = waits(store)
    with later(free):
        store.record(lease, exact_chunk(1))
    store.record(lease, exact_chunk(2))
    assert words in told[0] and "artifacts" in told[0] and "goes on" in told[-1]
    found = store.exact_images(lease.key)
    assert found is not None and found[0].tolist() == [0, 1, 2]
    assert store.check() == []
    assert not list(store.artifacts.rglob("*.partial"))


def test_a_full_disk_of_images_is_waited_for(on_disk: tuple[Store, Lease], disk: SmallDisk) -> None:
    store, lease = on_disk
    store.record(lease, exact_chunk(0))
    disk.fill()
    with pytest.raises(StorageError, match=r"no images can be written to .* is full: free some"):
        store.record(lease, exact_chunk(1))
    recorded_after(store, lease, disk.free, "is full")


def test_a_disk_of_images_that_turns_read_only_is_waited_for(
    on_disk: tuple[Store, Lease], disk: SmallDisk
) -> None:
    store, lease = on_disk
    store.record(lease, exact_chunk(0))
    disk.remount("ro")
    recorded_after(store, lease, lambda: disk.remount("rw"), "mounted read-only")


def test_a_quota_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 0.1)
    lease, whole, used = leased(store, planned(store)), os.fsync, [True]
    store.record(lease, exact_chunk(0))

    def fsync(handle: int) -> None:
        if used:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        whole(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert "quota" in why_not_writable(tmp_path)
    recorded_after(store, lease, used.clear, "reached its quota")


@pytest.fixture
def small(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A database on the small disk."""
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 0.1)
    with Store.open(f"sqlite:///{disk.folder / 'bench.db'}") as store:
        yield store


def test_a_full_disk_of_the_database_is_waited_for(small: Store, disk: SmallDisk) -> None:
    key = planned(small, items=64_000)
    lease = leased(small, key)
    disk.fill()

    def write(start: int) -> None:
        for first in range(start, start + 6_400, 640):
            part = tiny_outcomes(list(range(first, first + 640)))
            small.record(lease, Chunk(part, 0.0))

    with pytest.raises(StorageError, match=r"the disk is full|its disk is full"):
        write(0)
    known = len(small.finished_items(key))
    told = waits(small)
    with later(disk.free):
        write(known)
    assert len(told) == 2 and "full" in told[0]
    assert small.finished_items(key).tolist() == list(range(known + 6_400))
    assert small.check() == []


def test_a_database_that_another_process_holds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.store.database._EXPLICIT", {"timeout": 0.1, "isolation_level": None})
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    with Store.open(url) as first, Store.open(url) as second:
        told = waits(second)
        with first._engine.connect() as connection:
            transaction = connection.begin()
            timer = threading.Timer(0.5, lambda: None)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                second.waiting.check = _interrupt_after(timer)
                second.plan([PlannedCell(tiny_cell(2))])
            transaction.rollback()
        second.plan([PlannedCell(tiny_cell(2))])
    assert "another process held it" in told[0]


def _interrupt_after(timer: threading.Timer) -> Callable[[], None]:
    def check() -> None:
        if timer.finished.is_set():
            raise KeyboardInterrupt

    return check


# Files that are no longer the ones that were opened.


def deleted(path: Path) -> None:
    for file in path.parent.glob("bench.db*"):
        file.unlink()


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def folder_moved(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.parametrize(
    ("change", "word"),
    [(deleted, "deleted"), (replaced, "replaced by another file"), (folder_moved, "deleted")],
)
def test_a_database_that_is_no_longer_there_is_noticed_at_the_next_write(
    change: Callable[[Path], None], word: str, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "bench.db"
    path.parent.mkdir()
    with Store.open(f"sqlite:///{path}") as store:
        told = waits(store)
        lease = leased(store, planned(store))
        store.record(lease, tiny_chunk(0))
        change(path)
        for _ in range(2):
            with pytest.raises(StorageError, match=rf"bench\.db was {word} while this program"):
                store.record(lease, tiny_chunk(1))
        assert told == []
    assert word != "deleted" or not path.exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (1800, "30 min")]
)
def test_a_duration_is_written_in_minutes_and_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text

"""Processes that the store's tests kill, forked from one process that has imported everything."""

from __future__ import annotations

import importlib
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, event

from bench.core.cells import Cell, CellState
from bench.core.outcomes import OUTCOME_DTYPES, Chunk, Outcomes
from bench.store import LeaseLostError, PlannedCell, Store, migrate, process_id
from bench.store.database import resolve_url

CHUNK = 8


def tiny_cell(number: int = 0, items: int = 80) -> Cell:
    return Cell("t", "d", f"a{number}", "threat-id", "dd", f"attack-{number}", "ex", items)


def keep_tiny_examples(store: Store) -> None:
    """Record the examples that tiny cells name."""
    store.keep_examples("ex", "digits", 80, np.zeros(80, np.int16), ("a", "b"), (1, 2, 2))


def tiny_outcomes(items: list[int], salt: int = 0) -> Outcomes:
    """Outcomes whose columns follow from item and salt, so that a mixed-up row is noticed."""
    columns = [np.asarray(items).astype(kind) for kind in OUTCOME_DTYPES]
    made = Outcomes._make(columns)
    broken = made.item % 3 == 0
    return made._replace(
        verdict=broken.astype(np.uint8),
        eight_bit=broken,
        fragile=np.zeros(len(items), np.bool_),
        forwards=(made.item * 7 + salt).astype(np.int32),
        rejection=np.full(len(items), -np.inf, np.float32),
        target=np.full(len(items), -1, np.int16),
        claimed=np.full(len(items), -1, np.int8),
        true_confidence=np.full(len(items), np.nan, np.float32),
        true_rank=np.full(len(items), -1, np.int16),
        loss=np.full(len(items), np.nan, np.float32),
        share=np.full(len(items), -1, np.float32),
    )


def work(url: str, log: Path) -> None:
    """Record outcomes of open cells, writing `play` before and `ack` after each commit."""
    journal = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with Store.open(url) as store:
        while unfinished := [row for row in store.cells() if row.state != CellState.DONE]:
            store.plan(PlannedCell(row.cell) for row in unfinished if row.state == CellState.FAILED)
            random.shuffle(unfinished)
            for row in unfinished:
                _record(store, row.key, int(row.cell.attack[1:]), row.cell.items, journal)


def _record(store: Store, key: str, salt: int, items: int, journal: int) -> None:
    lease = store.lease(key, process_id())
    if lease is None:
        return
    known = set(store.finished_items(key).tolist())
    left = [item for item in range(items) if item not in known]
    try:
        for start in range(0, len(left), CHUNK):
            part = left[start : start + CHUNK]
            entry = f"{key} {' '.join(map(str, part))}\n"
            os.write(journal, f"play {entry}".encode())
            store.record(lease, Chunk(tiny_outcomes(part, salt), seconds=0.0))
            os.write(journal, f"ack {entry}".encode())
        store.finish(lease)
    except LeaseLostError:
        os.write(journal, f"lost {key}\n".encode())


def kill_workers(url: str, log: Path, workers: int, kills: int, limit: float) -> None:
    """Keep workers running and kill one at a time at a random moment; prints the kills."""
    dice, killed, until = random.Random(5), 0, time.monotonic() + limit
    running = [_forked(url, log) for _ in range(workers)]
    while running and time.monotonic() < until:
        time.sleep(dice.uniform(0.005, 0.05))
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                running.remove(pid)
        if running and killed < kills:
            victim = dice.choice(running)
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            running[running.index(victim)] = _forked(url, log)
            killed += 1
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(killed)


def _forked(url: str, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    random.seed(os.getpid())
    work(url, log)
    os._exit(0)


def killed_at(at: int, work: Callable[[], object]) -> bool:
    """Whether a child that does some work is killed before its statement or commit number `at`."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)
    work()
    os._exit(0)


def interrupted_upgrade(url: str, migrations: Path, known: tuple[str, ...], at: int) -> bool:
    """Upgrade in a child that is killed before its statement number `at`; whether it was."""
    place = resolve_url(url)
    return killed_at(at, lambda: migrate.upgrade(place, migrations=migrations, known=known))


def upgrades(url: str, migrations: Path, known: tuple[str, ...]) -> None:
    """Exit at every statement in turn, printing the state on disk each time, then succeed."""
    importlib.import_module("alembic.command")  # once, for all the children
    at = 1
    while interrupted_upgrade(url, migrations, known, at):
        with sqlite3.connect(str(resolve_url(url).database)) as connection:
            schema = connection.execute("SELECT sql FROM sqlite_master ORDER BY sql").fetchall()
            (whole,) = connection.execute("PRAGMA integrity_check").fetchone()
        print(whole, hash(tuple(schema)), len(schema))
        at += 1


def read_without_rights(url: str) -> None:
    """Read a database in a folder that this process may not write; prints its cells."""
    # Imports the driver now: without rights its modules may not be readable.
    Store.open(url.replace("bench.db", "other.db")).close()
    os.setuid(65534)
    with Store.open(url, read_only=True) as store:
        print(os.access(Path(str(resolve_url(url).database)).parent, os.W_OK), len(store.cells()))


if __name__ == "__main__":
    command, url, path, *rest = sys.argv[1:]
    if command == "chaos":
        kill_workers(url, Path(path), int(rest[0]), int(rest[1]), float(rest[2]))
    elif command == "read":
        read_without_rights(url)
    else:
        upgrades(url, Path(path), tuple(rest))

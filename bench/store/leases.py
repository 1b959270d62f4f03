"""Leases: one writer a key. The fence gives safety; the clock only says who may try next.

Where an owner is seen to run, or to run no more, the clock is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy import Row, Table, and_, case, select, text, update
from sqlalchemy.engine import Connection

from bench.core.cells import CellState, Culprit, Failure
from bench.store.database import insert_new
from bench.store.process_id import is_alive, is_gone
from bench.store.records import Lease, LeaseLostError
from bench.store.tables import CELLS, TASKS

LEASE_SECONDS = 60.0
BEAT = 5.0  # seconds between extensions where nothing is committed
PATIENCE = 3
"""Attempts that may end without one committed outcome before a cell counts as poisoned."""

POISONED = Failure(
    Culprit.INFRASTRUCTURE,
    f"poisoned: {PATIENCE} attempts died or fell silent before they committed an outcome, read"
    " their last lines and run the cell again when the cause is gone.",
)


def now(connection: Connection) -> float:
    """Unix time; the server's where workers on several hosts share one."""
    if connection.dialect.name == "postgresql":
        stamp = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))
        return float(stamp.scalar_one())
    return time.time()


def take_cell(connection: Connection, key: str, owner: str) -> Lease | None:
    """Lease a missing cell, or one whose owner is dead or late; None where it is not open."""
    row = _locked(connection, CELLS, key)
    if row is None or not _is_open(connection, row, owner):
        return None
    if row.state == CellState.RUNNING and row.attempts >= PATIENCE:
        fail(connection, Lease(key, row.owner, row.fence), POISONED)
        return None
    return _take(connection, CELLS, row, owner)


def take_task(connection: Connection, name: str, owner: str) -> Lease | None:
    """Lease a piece of work that has no outcomes, known or new; None where it is not open."""
    fresh = {"key": name, "state": CellState.MISSING, "reason": "", "owner": "", "fence": 0}
    insert_new(connection, TASKS, [fresh | {"lease_until": 0.0, "attempts": 0, "updated": 0.0}])
    row = _locked(connection, TASKS, name)
    if row is None or not _is_open(connection, row, owner, retry=True):
        return None
    return _take(connection, TASKS, row, owner)


def task_done(connection: Connection, name: str) -> bool:
    """Whether a task was finished."""
    state = connection.execute(select(TASKS.c.state).where(TASKS.c.key == name)).scalar()
    return bool(state == CellState.DONE)


def extend(connection: Connection, lease: Lease, changes: Mapping[str, object]) -> None:
    """Make the lease last from now, and change its row; LeaseLostError where it is lost."""
    moment = now(connection)
    _write(connection, lease, {"lease_until": moment + LEASE_SECONDS, "updated": moment, **changes})


def give_back(connection: Connection, lease: Lease) -> None:
    """Open the key again. An attempt that was stopped on purpose does not count as one."""
    attempts = _table(lease).c.attempts
    fewer = case((attempts > 0, attempts - 1), else_=0)
    _end(connection, lease, {"state": CellState.MISSING, "owner": "", "attempts": fewer})


def fail(connection: Connection, lease: Lease, failure: Failure) -> None:
    """Close the key without a figure."""
    reason, culprit = failure.reason.replace("\0", ""), failure.culprit.value
    _end(connection, lease, {"state": CellState.FAILED, "reason": reason, "culprit": culprit})


def done(connection: Connection, lease: Lease, figures: Mapping[str, object]) -> None:
    """Close the key with its figures."""
    _end(connection, lease, {"state": CellState.DONE, "reason": "", "culprit": None, **figures})


def _table(lease: Lease) -> Table:
    return TASKS if lease.task else CELLS


def _locked(connection: Connection, table: Table, key: str) -> Row[tuple[object, ...]] | None:
    asked = select(table).where(table.c.key == key).with_for_update(skip_locked=True)
    return connection.execute(asked).first()


def _is_open(
    connection: Connection, row: Row[tuple[object, ...]], asker: str, *, retry: bool = False
) -> bool:
    if row.state == CellState.RUNNING:
        return is_gone(row.owner) or (row.lease_until <= now(connection) and _left(row, asker))
    return row.state == CellState.MISSING or (retry and row.state == CellState.FAILED)


def _left(row: Row[tuple[object, ...]], asker: str) -> bool:
    """Whether a late lease may be taken: an owner who is seen to live on this host is slow."""
    return row.owner == asker or not is_alive(row.owner)


def _take(connection: Connection, table: Table, row: Row[tuple[object, ...]], owner: str) -> Lease:
    moment = now(connection)
    values = {
        "state": CellState.RUNNING,
        "owner": owner,
        "fence": row.fence + 1,
        "attempts": row.attempts + 1,
        "lease_until": moment + LEASE_SECONDS,
        "updated": moment,
    }
    connection.execute(update(table).where(table.c.key == row.key).values(values))
    return Lease(row.key, owner, row.fence + 1, task=table is TASKS)


def _end(connection: Connection, lease: Lease, changes: Mapping[str, object]) -> None:
    stamp = {"lease_until": 0.0, "updated": now(connection)}
    _write(connection, lease, {**stamp, **changes})


def _write(connection: Connection, lease: Lease, changes: Mapping[str, object]) -> None:
    table = _table(lease)
    ours = and_(
        table.c.key == lease.key,
        table.c.owner == lease.owner,
        table.c.fence == lease.fence,
        table.c.state == CellState.RUNNING,
    )
    if connection.execute(update(table).where(ours).values(dict(changes))).rowcount != 1:
        raise LeaseLostError(
            f"the lease of {lease.key[:12]} (fence {lease.fence}) is lost: another worker may"
            " hold it, nothing was written; lease it again."
        )

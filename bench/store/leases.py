"""Leases: one writer per key.

The fence prevents writes of an expired lease; the clock only decides when another worker may take
over: at once from a process of this host that has ended, after LEASE_SECONDS from a stopped one and
from those of other hosts, and after SILENT_SECONDS from one of this host that runs: it may be slow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy import Table, and_, case, select, text, update
from sqlalchemy.engine import Connection

from bench.core.cells import CellState, Culprit, Failure
from bench.store.database import insert_new
from bench.store.process_id import described, is_alive, is_gone, is_stopped
from bench.store.records import Lease, LeaseLostError
from bench.store.seals import seal_leased
from bench.store.tables import CELLS, TASKS, AnyRow
from bench.store.waiting import duration

LEASE_SECONDS = 60.0
SILENT_SECONDS = 900.0
"""Without a heartbeat for so long a process of this host loses its lease although it runs."""
HEARTBEAT_SECONDS = 5.0  # between extensions where nothing is committed
MAX_ATTEMPTS = 3
"""Attempts that may end without one committed outcome before the cell fails."""

POISONED = Failure(
    Culprit.INFRASTRUCTURE,
    f"poisoned: {MAX_ATTEMPTS} attempts, the later ones in smaller groups of examples, ended or"
    " stopped responding before they committed an outcome; read their last lines, then run again,"
    " which tries anew, with fewer --workers or where there is more memory or time.",
)


def clock(connection: Connection) -> float:
    """Unix time as cells are stamped with it: the database server's, where there is one."""
    if connection.dialect.name == "postgresql":
        stamp = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))
        return float(stamp.scalar_one())
    return time.time()


def lease(connection: Connection, key: str, owner: str) -> Lease | None:
    """Lease a cell for 60 seconds; None where it is not open.

    A cell is open where it is missing, or running with an owner that no longer runs on this host
    or whose lease has expired.
    """
    row = _locked(connection, CELLS, key)
    if row is None or not _is_open(connection, row, owner):
        return None
    if row.state == CellState.RUNNING and row.attempts >= MAX_ATTEMPTS:
        fail(connection, Lease(key, row.owner, row.fence), POISONED)
        return None
    return _take(connection, CELLS, row, owner)


def lease_task(connection: Connection, name: str, owner: str) -> Lease | None:
    """Lease a task without outcomes, such as a training; None where another worker holds it."""
    fresh = {"key": name, "state": CellState.MISSING, "reason": "", "owner": "", "fence": 0}
    fresh |= {"lease_until": 0.0, "attempts": 0, "updated": 0.0}
    if insert_new(connection, TASKS, [fresh]):
        seal_leased(connection, TASKS, [name])
    row = _locked(connection, TASKS, name)
    if row is None or not _is_open(connection, row, owner, retry=True):
        return None
    return _take(connection, TASKS, row, owner)


def extend(connection: Connection, lease: Lease, changes: Mapping[str, object]) -> None:
    """Extend the lease and change its row; raises LeaseLostError where it is lost."""
    moment = clock(connection)
    _write(connection, lease, {"lease_until": moment + LEASE_SECONDS, "updated": moment, **changes})


def release(connection: Connection, lease: Lease) -> None:
    """Give an unfinished cell or task back; recorded outcomes stay, the attempt is not counted."""
    attempts = _table(lease).c.attempts
    fewer = case((attempts > 0, attempts - 1), else_=0)
    _end(connection, lease, {"state": CellState.MISSING, "owner": "", "attempts": fewer})


def fail(connection: Connection, lease: Lease, failure: Failure) -> None:
    """Close a cell or task without a figure; planned again, it is open again."""
    reason, culprit = failure.reason.replace("\0", ""), failure.culprit.value
    _end(connection, lease, {"state": CellState.FAILED, "reason": reason, "culprit": culprit})


def mark_done(connection: Connection, lease: Lease, figures: Mapping[str, object]) -> None:
    """Close a cell with its figures."""
    _end(connection, lease, {"state": CellState.DONE, "reason": "", "culprit": None, **figures})


def heartbeat(connection: Connection, lease: Lease) -> None:
    """Extend a lease; raises LeaseLostError where it is lost."""
    extend(connection, lease, {})


def _table(lease: Lease) -> Table:
    return TASKS if lease.task else CELLS


def _locked(connection: Connection, table: Table, key: str) -> AnyRow | None:
    query = select(table).where(table.c.key == key).with_for_update(skip_locked=True)
    return connection.execute(query).first()


def _is_open(connection: Connection, row: AnyRow, owner: str, *, retry: bool = False) -> bool:
    if row.state == CellState.RUNNING:
        return _ends(row.owner, row.updated, row.lease_until, owner) <= clock(connection)
    return row.state == CellState.MISSING or (retry and row.state == CellState.FAILED)


def _ends(owner: str, updated: float, lease_until: float, asking: str = "") -> float:
    """When another worker may take a lease over (Unix time), unless it is extended until then."""
    if is_gone(owner):
        return 0.0
    if owner != asking and is_alive(owner) and not is_stopped(owner):
        return updated + SILENT_SECONDS
    return lease_until


def holder_of(connection: Connection, key: str, *, task: bool = False) -> str:
    """Who holds a cell or task, its last heartbeat, and when its lease ends; empty: no process."""
    table = TASKS if task else CELLS
    row = connection.execute(select(table).where(table.c.key == key)).first()
    if row is None or row.state != CellState.RUNNING:
        return ""
    left = _ends(row.owner, row.updated, row.lease_until) - clock(connection)
    last = time.strftime("%H:%M:%S", time.localtime(row.updated))
    return (
        f"{described(row.owner)} (last heartbeat {last}; without another its lease ends in"
        f" {duration(max(0.0, left))})"
    )


def _take(connection: Connection, table: Table, row: AnyRow, owner: str) -> Lease:
    moment = clock(connection)
    values = {
        "state": CellState.RUNNING,
        "owner": owner,
        "fence": row.fence + 1,
        "attempts": row.attempts + 1,
        "lease_until": moment + LEASE_SECONDS,
        "updated": moment,
    }
    connection.execute(update(table).where(table.c.key == row.key).values(values))
    seal_leased(connection, table, [row.key])
    return Lease(row.key, owner, row.fence + 1, task=table is TASKS, attempt=row.attempts + 1)


def _end(connection: Connection, lease: Lease, changes: Mapping[str, object]) -> None:
    stamp = {"lease_until": 0.0, "updated": clock(connection)}
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
            " hold it and nothing was written; lease it again."
        )
    seal_leased(connection, table, [lease.key])

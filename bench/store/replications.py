"""Second evaluations of finished cells, each stored beside the first and never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.engine import Connection

from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.core.machines import Machine
from bench.core.outcomes import Outcomes
from bench.core.replication import Replication, differences
from bench.store import leases
from bench.store.codec import pack, unpack
from bench.store.database import insert_new
from bench.store.outcomes import read_outcomes
from bench.store.seals import seal_rows
from bench.store.tables import CELLS, REPLICATIONS, AnyRow

_COLUMNS = [REPLICATIONS.c[name] for name in ("cell", "machine", "digest", "at", "differ")]
_BATCH = 500
"""Keys in one query."""


def insert_replication(
    connection: Connection, key: str, machine: Machine, found: Outcomes
) -> Replication:
    """Record a second evaluation of all items of a finished cell.

    The same outcomes from the same machine class are kept once. Raises BenchError where the cell is
    not finished, or the outcomes are of other items.
    """
    state = connection.execute(select(CELLS.c.state).where(CELLS.c.key == key)).scalar()
    if state != CellState.DONE:
        raise BenchError(
            f"cell {key[:12]} is {state or 'not in the database'}: only a finished cell has a"
            " second evaluation."
        )
    blob = pack(found)
    digest, text = hashlib.sha256(blob).hexdigest(), machine.to_json()
    values: dict[str, object] = {
        "cell": key,
        "machine": text,
        "digest": digest,
        "at": leases.clock(connection),
        "differ": len(differences(read_outcomes(connection, key), found)),
        "outcomes": blob,
    }
    if insert_new(connection, REPLICATIONS, [values]):
        seal_rows(connection, REPLICATIONS, [values])
    query = select(*_COLUMNS).where(_is(key, text, digest))
    return _replication(connection.execute(query).one())


def read_replications(
    connection: Connection, keys: Iterable[str]
) -> dict[str, tuple[Replication, ...]]:
    """The second evaluations of these cells, oldest first; cells without one are left out."""
    found: dict[str, tuple[Replication, ...]] = {}
    wanted = sorted(set(keys))
    for start in range(0, len(wanted), _BATCH):
        query = select(*_COLUMNS).where(REPLICATIONS.c.cell.in_(wanted[start : start + _BATCH]))
        for row in connection.execute(query.order_by(REPLICATIONS.c.at, REPLICATIONS.c.digest)):
            found[row.cell] = (*found.get(row.cell, ()), _replication(row))
    return found


def replicated_outcomes(connection: Connection, second: Replication) -> Outcomes:
    """The outcomes of a second evaluation, in item order; raises BenchError where it is unknown."""
    query = select(REPLICATIONS.c.outcomes).where(
        _is(second.cell, second.machine.to_json(), second.digest)
    )
    blob = connection.execute(query).scalar()
    if blob is None:
        raise BenchError(f"cell {second.cell[:12]} has no second evaluation {second.digest[:12]}.")
    return unpack(blob)


def _is(key: str, machine: str, digest: str) -> ColumnElement[bool]:
    return and_(
        REPLICATIONS.c.cell == key,
        REPLICATIONS.c.machine == machine,
        REPLICATIONS.c.digest == digest,
    )


def _replication(row: AnyRow) -> Replication:
    return Replication(row.cell, Machine.from_json(row.machine), row.digest, row.at, row.differ)

"""Points that are fitted to the training half, one for each cell of a shared attack."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from bench.core.errors import BenchError
from bench.core.fitted import FittedPoint
from bench.core.hashing import canonical
from bench.core.machines import Machine
from bench.store import leases
from bench.store.records import Lease
from bench.store.seals import Values, add_parts
from bench.store.tables import FITS

_BATCH = 500
"""Keys in one query."""


def add_fit(connection: Connection, lease: Lease, fitted: FittedPoint) -> None:
    """Store the point of a leased cell, once and before its first chunk; extends the lease.

    Raises LeaseLostError where the lease is lost, BenchError where the cell has a point.
    """
    leases.extend(connection, lease, {})
    if read_fit(connection, lease.key) is not None:
        raise BenchError(f"{lease.key[:12]} has a fitted point already: evaluate it with that one.")
    values = {
        "cell": lease.key,
        "shape": canonical(list(fitted.point.shape)),
        "point": np.ascontiguousarray(fitted.point, "<f4").tobytes(),
        "training": fitted.training,
        "forwards": fitted.forwards,
        "gradients": fitted.gradients,
        "seconds": fitted.seconds,
        "machine": "" if fitted.machine is None else fitted.machine.to_json(),
    }
    connection.execute(insert(FITS).values(values))
    add_parts(connection, FITS, lease.key, [values])


def read_fit(connection: Connection, key: str) -> FittedPoint | None:
    """The fitted point of a cell; None where each example has its own."""
    return read_fits(connection, [key]).get(key)


def read_fits(connection: Connection, keys: Iterable[str]) -> dict[str, FittedPoint]:
    """The fitted points of cells by key; cells without one are left out."""
    found, wanted = {}, sorted(set(keys))
    for start in range(0, len(wanted), _BATCH):
        query = select(FITS).where(FITS.c.cell.in_(wanted[start : start + _BATCH]))
        for row in connection.execute(query).mappings():
            found[str(row["cell"])] = _fitted(row)
    return found


def _fitted(row: Values) -> FittedPoint:
    point = np.frombuffer(row["point"], "<f4").reshape(json.loads(row["shape"]))
    return FittedPoint(
        point=point.astype(np.float32),
        training=row["training"],
        forwards=row["forwards"],
        gradients=row["gradients"],
        seconds=row["seconds"],
        machine=Machine.from_json(row["machine"]) if row["machine"] else None,
    )

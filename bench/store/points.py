"""Points of parametric perturbation sets: angles, shifts, patches, from which images are made."""

from __future__ import annotations

import json
from math import prod

import numpy as np
import numpy.typing as npt
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from bench.core.hashing import canonical
from bench.store.codec import unpack
from bench.store.seals import add_parts
from bench.store.tables import CHUNKS, POINTS

PointArray = npt.NDArray[np.float32]


def add_points(connection: Connection, key: str, start: int, points: PointArray | None) -> None:
    """Add the points [n, ...] of the chunk of a cell that begins at `start`; None: it has none."""
    if points is None:
        return
    values = {
        "cell": key,
        "start": start,
        "shape": canonical(list(points.shape[1:])),
        "points": np.ascontiguousarray(points, "<f4").tobytes(),
    }
    connection.execute(insert(POINTS).values(values))
    add_parts(connection, POINTS, key, [values])


def read_points(
    connection: Connection, key: str
) -> tuple[npt.NDArray[np.int32], PointArray] | None:
    """Items [n] and points [n, ...] of a cell in item order; None where its points are images."""
    query = (
        select(POINTS.c.shape, POINTS.c.points, CHUNKS.c.outcomes)
        .join(CHUNKS, (CHUNKS.c.cell == POINTS.c.cell) & (CHUNKS.c.start == POINTS.c.start))
        .where(POINTS.c.cell == key)
        .order_by(POINTS.c.start)
    )
    rows = list(connection.execute(query))
    if not rows:
        return None
    items = np.concatenate([unpack(row.outcomes).item for row in rows])
    order = np.argsort(items, kind="stable")
    parts = [np.frombuffer(row.points, "<f4").reshape(-1, *json.loads(row.shape)) for row in rows]
    return items[order], np.concatenate(parts).astype(np.float32)[order]


def expected_bytes(shape: str, count: int) -> int:
    """The length of `count` points of this shape; raises ValueError or TypeError for no shape."""
    return 4 * count * prod(int(size) for size in json.loads(shape))

"""Outcomes: chunks are appended and never changed; a finished cell gets its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from bench.core.errors import BenchError
from bench.core.hashing import canonical
from bench.core.machines import Machine
from bench.core.outcomes import Chunk, Outcomes, Verdict
from bench.store import images, leases, points, seals
from bench.store.codec import pack, unpack, unpack_items
from bench.store.records import CellFigures, Lease
from bench.store.tables import CELLS, CHUNKS

_BATCH = 500
"""Keys in one query."""


def append(connection: Connection, lease: Lease, chunk: Chunk, exact: str) -> None:
    """Add a chunk and extend the lease, both or neither; `exact` names the file of its images.

    Raises LeaseLostError where the lease is lost, and BenchError where an item is already recorded
    or the cell would get more outcomes than it has items.
    """
    item = chunk.outcomes.item
    progress: dict[str, object] = {"seconds": CELLS.c.seconds + chunk.seconds}
    if len(item):
        progress |= {"items_done": CELLS.c.items_done + len(item), "attempts": 0}
    leases.extend(connection, lease, progress)
    if not len(item):
        return
    row = connection.execute(select(CELLS).where(CELLS.c.key == lease.key)).one()
    _refuse_known(connection, lease.key, item)
    if row.items_done > row.items:
        raise BenchError(
            f"{lease.key[:12]} has {row.items} items and got {row.items_done} outcomes: plan the"
            " cell with its true number."
        )
    blob = pack(chunk.outcomes)
    values = {
        "cell": lease.key,
        "start": row.items_done - len(item),
        "count": len(item),
        "first": int(item.min()),
        "last": int(item.max()),
        "digest": hashlib.sha256(blob).hexdigest(),
        "exact": exact,
        "outcomes": blob,
        "machine": "" if chunk.machine is None else chunk.machine.to_json(),
    }
    connection.execute(insert(CHUNKS).values(values))
    seals.add_parts(connection, CHUNKS, lease.key, [values])
    images.add_images(connection, lease.key, chunk.images)
    points.add_points(connection, lease.key, int(values["start"]), chunk.points)


def finish(connection: Connection, lease: Lease) -> None:
    """Close a cell with the figures of its outcomes.

    Raises BenchError while outcomes are missing, and LeaseLostError where the lease is lost.
    """
    leases.extend(connection, lease, {})
    row = connection.execute(select(CELLS).where(CELLS.c.key == lease.key)).one()
    if row.items_done != row.items:
        raise BenchError(
            f"{lease.key[:12]} has {row.items_done} of {row.items} outcomes: record the rest"
            " before it is finished."
        )
    found = read_outcomes(connection, lease.key)
    figures = cell_figures(found)
    seals.seal_outcomes(connection, lease.key, found)
    leases.mark_done(
        connection, lease, {**figures.stored(), "seal": seal(connection, lease.key, figures)}
    )


def read_outcomes(connection: Connection, key: str) -> Outcomes:
    """The outcomes recorded for a cell, in item order; empty columns where there are none."""
    return Outcomes.concatenate([unpack(blob) for blob in _blobs(connection, key)])


def finished_items(connection: Connection, key: str) -> npt.NDArray[np.int32]:
    """The items [n] recorded for a cell, in rising order."""
    parts = [unpack_items(blob) for blob in _blobs(connection, key)]
    return np.sort(np.concatenate([np.zeros(0, np.int32), *parts]))


def read_machines(connection: Connection, keys: Iterable[str]) -> dict[str, tuple[Machine, ...]]:
    """The machine classes that computed each of these cells, sorted; those without are left out."""
    found: dict[str, tuple[Machine, ...]] = {}
    wanted = sorted(set(keys))
    for start in range(0, len(wanted), _BATCH):
        known = CHUNKS.c.cell.in_(wanted[start : start + _BATCH]) & (CHUNKS.c.machine != "")
        query = select(CHUNKS.c.cell, CHUNKS.c.machine).where(known).distinct()
        for key, text in connection.execute(query):
            found[key] = tuple(sorted({*found.get(key, ()), Machine.from_json(text)}))
    return found


def cell_figures(found: Outcomes) -> CellFigures:
    """The figures of a finished cell."""
    broken = found.verdict == Verdict.BROKEN
    return CellFigures(
        robust=int((~broken).sum()),
        refused=int((found.verdict >= Verdict.OUT_OF_BALL).sum()),
        fragile=int((broken & found.fragile).sum()),
        broken_8bit=int((broken & found.eight_bit).sum()),
        forwards=int(found.forwards.sum(dtype=np.int64)),
        gradients=int(found.gradients.sum(dtype=np.int64)),
        looks=int(found.final_checks.sum(dtype=np.int64)),
        max_distance=float(found.distance[broken].max()) if broken.any() else None,
    )


def seal(connection: Connection, key: str, figures: CellFigures) -> str:
    """A digest over a cell's key, chunks and figures, which an edit of them does not match."""
    query = select(CHUNKS.c.digest).where(CHUNKS.c.cell == key).order_by(CHUNKS.c.start)
    written = {name: repr(value) for name, value in figures.stored().items()}
    content = canonical([key, list(connection.execute(query).scalars()), written])
    return hashlib.sha256(content.encode()).hexdigest()


def _blobs(connection: Connection, key: str) -> list[bytes]:
    query = select(CHUNKS.c.outcomes).where(CHUNKS.c.cell == key).order_by(CHUNKS.c.start)
    return list(connection.execute(query).scalars())


def _refuse_known(connection: Connection, key: str, item: npt.NDArray[np.int32]) -> None:
    near = (CHUNKS.c.cell == key) & (CHUNKS.c.last >= int(item.min()))
    query = select(CHUNKS.c.outcomes).where(near & (CHUNKS.c.first <= int(item.max())))
    known = [unpack_items(blob) for blob in connection.execute(query).scalars()]
    seen, times = np.unique(np.concatenate([np.unique(item), *known]), return_counts=True)
    again = seen[times > 1]
    if len(np.unique(item)) != len(item) or len(again):
        twice = again[0] if len(again) else np.sort(item)[:-1][np.diff(np.sort(item)) == 0][0]
        raise BenchError(
            f"item {twice} of {key[:12]} is already recorded: record each item once, and skip those"
            " of `finished_items`."
        )

"""Faults of chunks, of their figures, and of kept images and points; one cell in memory."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from math import prod

import numpy as np
import numpy.typing as npt
from sqlalchemy import Table, select
from sqlalchemy.engine import Connection

from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes, Verdict
from bench.store import outcomes, seals
from bench.store.cell_faults import Context, cell_name
from bench.store.codec import unpack
from bench.store.faults import Fault, raw_rows, type_faults
from bench.store.known_seals import KnownSeals
from bench.store.points import expected_bytes
from bench.store.seals import Values
from bench.store.tables import CELLS, CHUNKS, FITS, IMAGES, POINTS

_Items = npt.NDArray[np.int32]
_RowCheck = Callable[[str, Values], Iterator[Fault]]
_CHUNK_SIZES = select(CHUNKS.c.cell, CHUNKS.c.start, CHUNKS.c["count"])


@dataclass
class OutcomeCheck:
    """Compares the chunks of all cells with the rows of cells and the seals."""

    connection: Connection
    known: KnownSeals
    context: Context
    cells: Mapping[str, Values]
    survivors: dict[str, _Items] = field(default_factory=dict)
    """Cell that another one follows in a cascade -> its unbroken items."""
    items: dict[str, _Items] = field(default_factory=dict)
    """Cell that follows another one -> its items."""

    def faults(self) -> Iterator[Fault]:
        """All faults of chunks and figures."""
        followed = {row["before"] for row in self.cells.values() if row["before"]}
        rows = raw_rows(self.connection, CHUNKS, order=("cell", "start"))
        seen = set()
        for key, group in groupby(rows, key=lambda row: str(row["cell"])):
            seen.add(key)
            yield from self._cell_faults(key, list(group), key in followed)
        for key, row in self.cells.items():
            if key not in seen and (row["items_done"] or row["state"] == CellState.DONE):
                yield from self._figure_faults(row, Outcomes.concatenate([]))
        yield from self._cascade_faults()

    def _cell_faults(self, key: str, chunks: list[Values], followed: bool) -> Iterator[Fault]:
        parts: list[Outcomes] = []
        for chunk, start in zip(chunks, _starts(chunks), strict=True):
            name = seals.row_key(CHUNKS, chunk)
            wrong = list(type_faults(CHUNKS, name, chunk))
            yield from wrong or _blob_faults(name, chunk, start, parts)
        damaged = len(parts) < len(chunks)
        total = None if damaged else sum(seals.part_digest(CHUNKS, chunk) for chunk in chunks)
        yield from self.known.sum_faults(CHUNKS.name, key, total)
        row = self.cells.get(key)
        if row is None or damaged:
            self.known.by_kind[seals.OUTCOMES].pop(key, None)
            return
        found = Outcomes.concatenate(parts)
        if followed:
            self.survivors[key] = found.item[found.verdict != Verdict.BROKEN]
        if row["before"]:
            self.items[key] = found.item
        yield from self._figure_faults(row, found)

    def _figure_faults(self, row: Values, found: Outcomes) -> Iterator[Fault]:
        key, name = row["key"], cell_name(row)
        if len(found.item) != row["items_done"]:
            text = f"counts {row['items_done']} outcomes and has {len(found.item)} ({name})"
            yield Fault(CELLS.name, key, "items_done", text)
        if len(np.unique(found.item)) != len(found.item):
            yield Fault(CHUNKS.name, key, "outcomes", f"an item is there twice ({name})")
        if row["state"] != CellState.DONE:
            return
        figures = outcomes.cell_figures(found)
        edited = [column for column, value in figures.stored().items() if row[column] != value]
        for column in edited:
            text = f"is {row[column]}, its outcomes give {figures.stored()[column]} ({name})"
            yield Fault(CELLS.name, key, column, text)
        if not edited and outcomes.seal(self.connection, key, figures) != row["seal"]:
            yield Fault(CELLS.name, key, "seal", f"does not match its chunks and figures ({name})")
        if self.known.by_kind[seals.OUTCOMES].pop(key, None) != seals.outcomes_digest(found):
            yield Fault(seals.OUTCOMES, key, "", f"do not match their seal ({name})")
        yield from self._label_faults(row, found)

    def _label_faults(self, row: Values, found: Outcomes) -> Iterator[Fault]:
        """Clean images whose recorded rank of the true class contradicts the label.

        The label of a random defense is the majority of its draws, the rank that of their mean.
        """
        labels = self.context.labels.get(row["examples"])
        if row["attack"] != CLEAN or labels is None or not len(found.item):
            return
        if found.item.max() >= len(labels):
            yield Fault(CELLS.name, row["key"], "examples", "its outcomes are of other examples")
            return
        recorded = (found.true_rank >= 0) & (found.label >= 0)
        right = found.label == labels[found.item]
        wrong = int((recorded & (right != (found.true_rank == 0))).sum())
        if wrong and row["defense"] not in self.context.voting:
            text = f"{wrong} labels contradict the clean outcomes of {row['defense']}"
            yield Fault("examples", row["examples"], "labels", text)

    def _cascade_faults(self) -> Iterator[Fault]:
        """Cells in a cascade: their items must be the survivors of the cell before."""
        for key, row in self.cells.items():
            before = row["before"]
            if not before:
                continue
            first = self.cells.get(before)
            if first is None or first["state"] != CellState.DONE:
                text = f"follows cell {before[:12]}, which is missing or not done"
                yield Fault(CELLS.name, key, "before", f"{text} ({cell_name(row)})")
            elif before in self.survivors:
                survivors = self.survivors[before]
                items = self.items.get(key, np.zeros(0, np.int32))
                if not np.isin(items, survivors).all() or row["items"] != len(survivors):
                    text = f"has other items than the survivors of cell {before[:12]}"
                    yield Fault(CELLS.name, key, "items", f"{text} ({cell_name(row)})")


def _starts(chunks: list[Values]) -> list[int]:
    """The number of outcomes before each chunk; 0 after a count that is no number."""
    counts = [chunk["count"] if isinstance(chunk["count"], int) else 0 for chunk in chunks]
    return [0, *accumulate(counts)][: len(counts)]


def _blob_faults(name: str, chunk: Values, start: int, parts: list[Outcomes]) -> Iterator[Fault]:
    """Faults of a chunk of outcomes, which are added to `parts` where they can be read."""
    if hashlib.sha256(chunk["outcomes"]).hexdigest() != chunk["digest"]:
        yield Fault(CHUNKS.name, name, "outcomes", "do not have the recorded digest")
        return
    try:
        found = unpack(chunk["outcomes"])
    except (BenchError, ValueError, struct.error):
        yield Fault(CHUNKS.name, name, "outcomes", "are not packed as outcomes")
        return
    parts.append(found)
    given = {"start": start, "count": len(found.item)}
    if len(found.item):
        given |= {"first": int(found.item.min()), "last": int(found.item.max())}
    for column, value in given.items():
        if chunk[column] != value:
            yield Fault(CHUNKS.name, name, column, f"is {chunk[column]}, its outcomes give {value}")


def image_faults(connection: Connection, known: KnownSeals) -> Iterator[Fault]:
    """Faults of the images that are kept in the database."""
    rows = raw_rows(connection, IMAGES, order=("cell", "item"))
    return _part_faults(IMAGES, rows, known, _pixel_faults)


def point_faults(connection: Connection, known: KnownSeals) -> Iterator[Fault]:
    """Faults of the points of parametric perturbation sets."""
    counts = {(cell, start): count for cell, start, count in connection.execute(_CHUNK_SIZES)}

    def wrong(name: str, row: Values) -> Iterator[Fault]:
        count = counts.get((row["cell"], row["start"]))
        if count is None:
            yield Fault(POINTS.name, name, "start", "belongs to no chunk")
            return
        try:
            size = expected_bytes(row["shape"], count)
        except (ValueError, TypeError):
            yield Fault(POINTS.name, name, "shape", f"is {row['shape']!r}, not a list of sizes")
            return
        if len(row["points"]) != size:
            text = f"has {len(row['points'])} bytes, {size} were expected"
            yield Fault(POINTS.name, name, "points", text)

    rows = raw_rows(connection, POINTS, order=("cell", "start"))
    return _part_faults(POINTS, rows, known, wrong)


def fit_faults(connection: Connection, known: KnownSeals) -> Iterator[Fault]:
    """Faults of the points that are fitted to the training half."""

    def wrong(name: str, row: Values) -> Iterator[Fault]:
        try:
            size = expected_bytes(row["shape"], 1)
        except (ValueError, TypeError):
            yield Fault(FITS.name, name, "shape", f"is {row['shape']!r}, not a list of sizes")
            return
        if len(row["point"]) != size:
            text = f"has {len(row['point'])} bytes, {size} were expected"
            yield Fault(FITS.name, name, "point", text)

    return _part_faults(FITS, raw_rows(connection, FITS, order=("cell",)), known, wrong)


def _part_faults(
    table: Table, rows: Iterable[Values], known: KnownSeals, wrong_values: _RowCheck
) -> Iterator[Fault]:
    """Faults of rows of cells, in the order of cells, and of the seals over their sums."""
    for key, group in groupby(rows, key=lambda row: str(row["cell"])):
        total: int | None = 0
        for row in group:
            name = seals.row_key(table, row)
            wrong = [*type_faults(table, name, row)] or [*wrong_values(name, row)]
            yield from wrong
            damaged = wrong or total is None
            total = None if damaged else (total or 0) + seals.part_digest(table, row)
        yield from known.sum_faults(table.name, key, total)


def _pixel_faults(name: str, row: Values) -> Iterator[Fault]:
    try:
        pixels = prod(int(size) for size in json.loads(row["shape"]))
    except (ValueError, TypeError):
        yield Fault(IMAGES.name, name, "shape", f"is {row['shape']!r}, not a list of sizes")
        return
    for column, size in (("original", 1), ("adversarial", 4)):
        if len(row[column]) != size * pixels:
            text = f"has {len(row[column])} bytes, {size * pixels} were expected"
            yield Fault(IMAGES.name, name, column, text)

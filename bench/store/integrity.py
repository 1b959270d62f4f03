"""Integrity check of a database, without evaluating a cell again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import Connection

from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.store import images, outcomes
from bench.store.records import CellFigures
from bench.store.tables import CELLS, CHUNKS, AnyRow


def problems(connection: Connection, folder: Path) -> list[str]:
    """One sentence for each fault of the database or its files; empty where there is none."""
    found = [*_file_faults(connection)]
    if found:
        return found
    for row in connection.execute(select(CELLS).order_by(CELLS.c.key)).all():
        found += _cell_faults(connection, row)
    return [*found, *_image_faults(connection, folder)]


def _file_faults(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return
    for (message,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if message != "ok":
            yield f"the database file is damaged: {message}."
    for table, rowid, other, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"row {rowid} of {table} refers to a missing row of {other}."


def _item_faults(name: str, counted: int, items: list[int]) -> Iterator[str]:
    if len(items) != counted:
        yield f"{name} counts {counted} outcomes and has {len(items)}."
    if len(set(items)) != len(items):
        yield f"{name} has an item twice."


def _cell_faults(connection: Connection, row: AnyRow) -> Iterator[str]:
    name = f"cell {row.key[:12]} ({row.attack} against {row.defense} on {row.threat})"
    chunks = connection.execute(select(CHUNKS).where(CHUNKS.c.cell == row.key)).all()
    altered = [c for c in chunks if hashlib.sha256(c.outcomes).hexdigest() != c.digest]
    if altered:
        yield f"{name} has {len(altered)} altered chunks of outcomes: evaluate it again."
        return
    try:
        found = outcomes.read_outcomes(connection, row.key)
    except BenchError as error:
        yield f"{name}: {error}"
        return
    yield from _item_faults(name, row.items_done, found.item.tolist())
    if row.before:
        yield from _cascade_faults(connection, name, row, set(found.item.tolist()))
    if row.state == CellState.DONE:
        yield from _figure_faults(connection, name, row, outcomes.cell_figures(found))


def _cascade_faults(
    connection: Connection, name: str, row: AnyRow, items: set[int]
) -> Iterator[str]:
    """Faults of a cell in a cascade: its items must be the survivors of the cell before it."""
    query = select(CELLS.c.state).where(CELLS.c.key == row.before)
    if connection.execute(query).scalar() != CellState.DONE:
        yield f"{name} follows cell {row.before[:12]}, which is missing or not done."
        return
    survivors = set(outcomes.read_outcomes(connection, row.before).survivors())
    if not items <= survivors or row.items != len(survivors):
        yield f"{name} has other items than the survivors of cell {row.before[:12]}."


def _figure_faults(
    connection: Connection,
    name: str,
    row: AnyRow,
    figures: CellFigures,
) -> Iterator[str]:
    edited = [figure for figure, value in asdict(figures).items() if row._mapping[figure] != value]
    if edited:
        yield f"{name} has {', '.join(edited)} that its outcomes do not give."
    elif outcomes.seal(connection, row.key, figures) != row.seal:
        yield f"{name} does not match its seal: its outcomes were changed."


def _image_faults(connection: Connection, folder: Path) -> Iterator[str]:
    for digest in sorted(set(images.files_of(connection))):
        path = images.path_of(folder, digest)
        if not path.exists():
            yield f"{path} is missing."
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{path} was altered."

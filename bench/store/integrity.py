"""The check of a database: every promise that can be tested without playing a cell again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.store import images, outcomes
from bench.store.tables import CELLS, CHUNKS


def problems(connection: Connection, folder: Path) -> list[str]:
    """One sentence for each broken promise; empty where all hold."""
    found = [*_of_the_file(connection)]
    if found:
        return found
    for row in connection.execute(select(CELLS).order_by(CELLS.c.key)).all():
        found += _of_a_cell(connection, row)
    return [*found, *_of_files(connection, folder)]


def _of_the_file(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return
    for (told,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if told != "ok":
            yield f"the database file is damaged: {told}."
    for table, rowid, other, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"row {rowid} of {table} refers to a row of {other} that is not there."


def _of_a_cell(connection: Connection, row: Row[tuple[object, ...]]) -> Iterator[str]:
    name = f"cell {row.key[:12]} ({row.attack} against {row.defense} on {row.threat})"
    chunks = connection.execute(select(CHUNKS).where(CHUNKS.c.cell == row.key)).all()
    altered = [c for c in chunks if hashlib.sha256(c.outcomes).hexdigest() != c.digest]
    if altered:
        yield f"{name} has {len(altered)} altered chunks of outcomes: play it again."
        return
    try:
        found = outcomes.outcomes(connection, row.key)
    except BenchError as error:
        yield f"{name}: {error}"
        return
    if len(found.item) != row.items_done:
        yield f"{name} counts {row.items_done} outcomes and has {len(found.item)}."
    if len(set(found.item.tolist())) != len(found.item):
        yield f"{name} has an item twice."
    if row.before:
        yield from _of_a_cascade(connection, name, row, set(found.item.tolist()))
    if row.state == CellState.DONE:
        yield from _of_figures(connection, name, row, outcomes.summary(found))


def _of_a_cascade(
    connection: Connection, name: str, row: Row[tuple[object, ...]], met: set[int]
) -> Iterator[str]:
    """A cell of a cascade meets the survivors of the cell before it: all of them, nobody else."""
    asked = select(CELLS.c.state).where(CELLS.c.key == row.before)
    if connection.execute(asked).scalar() != CellState.DONE:
        yield f"{name} follows cell {row.before[:12]}, which is not there or not done."
        return
    left = set(outcomes.outcomes(connection, row.before).survivors())
    if not met <= left or row.items != len(left):
        yield f"{name} meets others than the survivors of cell {row.before[:12]}."


def _of_figures(
    connection: Connection,
    name: str,
    row: Row[tuple[object, ...]],
    figures: dict[str, int | float | None],
) -> Iterator[str]:
    edited = [figure for figure, value in figures.items() if row._mapping[figure] != value]
    if edited:
        yield f"{name} shows {', '.join(edited)} that its outcomes do not give."
    elif outcomes.seal(connection, row.key, figures) != row.seal:
        yield f"{name} does not match its seal: its outcomes were changed by hand."


def _of_files(connection: Connection, folder: Path) -> Iterator[str]:
    for digest in sorted(set(images.files_of(connection))):
        path = images.path_of(folder, digest)
        if not path.exists():
            yield f"{path} is missing."
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{path} was altered."

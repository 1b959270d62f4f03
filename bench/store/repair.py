"""Removes what the integrity check names, so that the next run evaluates it again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Table, and_, delete, select, text
from sqlalchemy.engine import Connection

from bench.core.errors import UnavailableError
from bench.store import salvage, seals
from bench.store.damage import check_database
from bench.store.database import resolve_url, sqlite_file, url_text
from bench.store.faults import Fault
from bench.store.store import Store
from bench.store.tables import (
    CELLS,
    CHUNKS,
    EXAMPLES,
    FITS,
    IMAGES,
    METADATA,
    POINTS,
    REPLICATIONS,
    SEALS,
)

_OF_CELLS = (CELLS.name, CHUNKS.name, IMAGES.name, POINTS.name, FITS.name, seals.OUTCOMES)
"""Tables and kinds of seals whose faults remove a whole cell."""
_CELL_KINDS = (*_OF_CELLS, seals.RUNS)


@dataclass
class Removed:
    """What was removed, as the names that messages show."""

    cells: dict[str, str] = field(default_factory=dict)
    """Key -> attack, defense and threat model; the key alone where the row was lost."""
    rows: dict[str, list[str]] = field(default_factory=dict)
    """Other table -> keys of its rows."""

    @property
    def sentences(self) -> list[str]:
        """One line for each cell and row that was removed."""
        cells = [f"cells {key}: {name} must be evaluated again" for key, name in self.cells.items()]
        return cells + [
            f"{table} {key}: {_REMEDIES.get(table, 'removed')}"
            for table, keys in self.rows.items()
            for key in keys
        ]


@dataclass(frozen=True)
class Repair:
    """The result of a repair."""

    backup: Path | None
    """The copy made before; None on a server, and where nothing was wrong."""
    removed: Removed
    left: list[Fault]
    """Faults that the next run repairs: rows that are only missing."""


def repair(url: str | None, *, backup: bool = True) -> Repair:
    """Remove everything that the check names, in one transaction, after a backup.

    A SQLite file whose pages or schema are damaged is written anew from the rows that can be read.
    Raises UnavailableError where the database is busy or missing, and for one on a server unless
    `backup` is False.
    """
    parsed = resolve_url(url)
    path, removed = sqlite_file(parsed), Removed()
    if path is None and backup:
        raise UnavailableError(
            f"{url_text(parsed)} is on a server: back it up with pg_dump, then give --no-backup."
        )
    found = check_database(url)
    if not found:
        return Repair(None, removed, [])
    kept = None
    if path is not None:
        salvage.refuse_busy(path)
        kept = salvage.backup_of(path) if backup else None
        if any(not fault.key for fault in found):
            _write_anew(path)
    with Store.open(url) as store:
        found = store.check()
        while found and _remove(store, found, removed):
            found = store.check()
    return Repair(kept, removed, found)


def _remove(store: Store, found: list[Fault], removed: Removed) -> bool:
    with store.writing() as connection:
        return remove_faults(connection, found, removed)


def _write_anew(path: Path) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        Store.open(f"sqlite:///{fresh}").close()
        salvage.rebuild(path, fresh)
        salvage.replace_file(path, fresh)
    finally:
        fresh.unlink(missing_ok=True)


_REMEDIES = {
    "cards": "`bench run` records the plugin again",
    "certificates": "`bench run` certifies the defense again",
    "evidence": "`bench run` examines the defense again",
    "examples": "`bench run` records the labels again",
    "replications": "`bench reproduce` evaluates the cell a second time again",
    "tasks": "the training is done again where it is needed",
    "weights": "the weights are loaded or trained again where they are needed",
}


def needs_no_removal(fault: Fault) -> bool:
    """Whether the next run repairs a fault although nothing is removed: a row is only missing."""
    return fault.text.startswith("no diagnostic has")


def remove_faults(connection: Connection, faults: Iterable[Fault], removed: Removed) -> bool:
    """Remove the rows that faults name, with their seals; whether anything was removed."""
    acted = False
    for fault in faults:
        if needs_no_removal(fault) or not fault.key:
            continue
        acted = True
        if fault.key.startswith("row "):
            _remove_row_number(connection, fault)
        elif fault.table in _OF_CELLS:
            for key in _cells_of(connection, fault):
                _remove_cell(connection, key, removed)
        elif fault.table == SEALS.name:
            kind, key = json.loads(fault.key)
            connection.execute(delete(SEALS).where((SEALS.c.kind == kind) & (SEALS.c.key == key)))
        elif fault.table in METADATA.tables:
            _remove_row(connection, METADATA.tables[fault.table], fault.key, removed)
        else:
            connection.execute(text(f'DROP TRIGGER "{fault.key}"'))
    return acted


def _cells_of(connection: Connection, fault: Fault) -> list[str]:
    """The cells that a fault is about: one, or those with a chunk of a damaged image file."""
    if fault.column == "exact" and not fault.key.startswith("["):
        query = select(CHUNKS.c.cell).where(CHUNKS.c.exact == fault.key).distinct()
        return list(connection.execute(query).scalars())
    return [json.loads(fault.key)[0] if fault.key.startswith("[") else fault.key]


def _remove_cell(connection: Connection, key: str, removed: Removed) -> None:
    names = [CELLS.c[name] for name in ("attack", "defense", "threat")]
    row = connection.execute(select(*names).where(CELLS.c.key == key)).first()
    for table in (IMAGES, POINTS, FITS, CHUNKS, REPLICATIONS):
        connection.execute(delete(table).where(table.c.cell == key))
    connection.execute(delete(CELLS).where(CELLS.c.key == key))
    seals.remove_seals(connection, _CELL_KINDS, key)
    if row is not None:
        removed.cells[key] = f"{row[0]} against {row[1]} on {row[2] or 'clean images'}"
    else:
        removed.cells.setdefault(key, "a cell whose row was lost")


def _remove_row(connection: Connection, table: Table, key: str, removed: Removed) -> None:
    columns = list(table.primary_key)
    values: list[Any] = [key] if len(columns) == 1 else json.loads(key)
    if len(columns) == 1 and columns[0].type.python_type is int:
        values = [int(key)]
    chosen = and_(*(column == value for column, value in zip(columns, values, strict=True)))
    connection.execute(delete(table).where(chosen))
    seals.remove_seals(connection, [table.name], key)
    if table is EXAMPLES:
        # A run reads the examples of every cell, planned or done, before it records any.
        cells = connection.execute(select(CELLS.c.key).where(CELLS.c.examples == key)).scalars()
        for cell in list(cells):
            _remove_cell(connection, cell, removed)
    known = removed.rows.setdefault(table.name, [])
    if key not in known:
        known.append(key)


def _remove_row_number(connection: Connection, fault: Fault) -> None:
    """Remove a row of SQLite by its number: it refers to a row that is missing."""
    number = int(fault.key.removeprefix("row "))
    table = METADATA.tables[fault.table].name
    connection.execute(text(f'DELETE FROM "{table}" WHERE rowid = {number}'))

"""Copies the rows that can still be read from a damaged SQLite file into a new one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Table

from bench.core.errors import UnavailableError
from bench.store.database import copy_file
from bench.store.tables import METADATA

_SIDE_FILES = ("-wal", "-shm", "-journal")


def backup_of(path: Path) -> Path:
    """Copy a database, damaged or not, to a new file beside it, and return that file."""
    number = 1
    while (target := path.with_name(f"{path.name}.before-repair-{number}")).exists():
        number += 1
    try:
        copy_file(path, target)
    except UnavailableError:
        # SQLite does not open it: the bytes are copied as they are.
        for suffix in ("", *_SIDE_FILES):
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copy2(source, target.with_name(target.name + suffix))
    return target


def refuse_busy(path: Path) -> None:
    """Raises UnavailableError where another process writes to the database."""
    with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UnavailableError(
                    f"another process writes to {path}: end it, then repair again."
                ) from error
        except sqlite3.DatabaseError:
            return  # damage is what will be repaired


def rebuild(damaged: Path, fresh: Path) -> None:
    """Copy the readable rows of every known table into a new database with empty tables."""
    source = sqlite3.connect(f"file:{quote(str(damaged))}?mode=ro", uri=True)
    source.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    with closing(source), closing(sqlite3.connect(fresh)) as target:
        target.execute("PRAGMA foreign_keys=OFF")
        for table in METADATA.sorted_tables:
            with target:
                _copy_rows(source, target, table)


def replace_file(path: Path, fresh: Path) -> None:
    """Put a closed database in the place of another one."""
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    fresh.replace(path)


def _copy_rows(source: sqlite3.Connection, target: sqlite3.Connection, table: Table) -> None:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    marks = ", ".join("?" for _ in table.columns)
    insert = f'INSERT OR IGNORE INTO "{table.name}" ({names}) VALUES ({marks})'
    # Beyond a damaged page the rows are read from the other end.
    for order in ("", " ORDER BY rowid DESC"):
        query = f'SELECT {names} FROM "{table.name}"{order}'
        for row in _readable(source, query):
            # Text that is not UTF-8, and NULL where a value is needed: the row is lost.
            with suppress(UnicodeEncodeError, sqlite3.IntegrityError):
                target.execute(insert, row)


def _readable(source: sqlite3.Connection, query: str) -> Iterator[tuple[object, ...]]:
    with suppress(sqlite3.DatabaseError):
        yield from source.execute(query)

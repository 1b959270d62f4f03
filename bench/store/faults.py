"""Faults of a database file and of single values, found without decoding any row."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Integer,
    LargeBinary,
    Table,
    Text,
    inspect,
    text,
)
from sqlalchemy.engine import Connection, RowMapping
from sqlalchemy.exc import DatabaseError, InterfaceError

from bench.store.tables import METADATA

FILE = "file"
"""The table of a fault that is none of a row."""
_MOST_MESSAGES = 50
_MOST_FAULTS = 1000
_TYPES = {
    Text: (str,),
    Boolean: (bool, int),
    Integer: (int,),
    Double: (float, int),
    LargeBinary: (bytes, memoryview),
}
_VERSION_TABLE = "alembic_version"


READING_ERRORS = (
    ArithmeticError, AttributeError, DatabaseError, InterfaceError, LookupError, TypeError,
    ValueError, struct.error,
)  # fmt: skip
"""What code raises that reads a row unlike any that this program writes."""


class Fault(NamedTuple):
    """What is wrong at one place of the database."""

    table: str
    """The table, or `file` where the file itself or its schema is damaged."""
    key: str
    """The primary key of the row; empty where no row is meant."""
    column: str
    """The column; empty where several may be meant."""
    text: str
    """What is there, as the rest of a sentence that begins with the place."""

    @property
    def sentence(self) -> str:
        """The place and what is wrong there, on one line that any terminal shows."""
        place = " ".join(part for part in (self.table, self.key) if part)
        column = f", column {self.column}" if self.column else ""
        line = " ".join(f"{place}{column}: {self.text}".split())
        return line.encode("utf-8", "backslashreplace").decode()


class FaultList(list[Fault]):
    """The faults that were found so far."""

    def collect(self, table: str, found: Iterator[Fault]) -> None:
        """Add faults; one more where the table cannot be read to its end, or has very many."""
        before = len(self)
        try:
            for fault in found:
                self.append(fault)
                if len(self) - before >= _MOST_FAULTS:
                    self.append(Fault(table, "", "", f"has {_MOST_FAULTS} faults or more"))
                    return
        except READING_ERRORS as error:
            cause = getattr(error, "orig", error)
            self.append(Fault(table, "", "", f"cannot be read to its end: {cause}"))


def file_faults(connection: Connection) -> Iterator[Fault]:
    """Faults of the pages, indexes and references of a SQLite file; none on a server."""
    if connection.dialect.name != "sqlite":
        return
    try:
        for (message,) in connection.exec_driver_sql(f"PRAGMA integrity_check({_MOST_MESSAGES})"):
            if message != "ok":
                yield Fault(FILE, "", "", f"damaged: {message}")
        for table, rowid, other, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            yield Fault(str(table), f"row {rowid}", "", f"refers to a missing row of {other}")
    except DatabaseError as error:
        yield Fault(FILE, "", "", f"damaged: {error.orig}")


def schema_faults(connection: Connection) -> list[Fault]:
    """Tables and columns that are missing, have another type, or do not belong there."""
    found = inspect(connection)
    names = set(found.get_table_names())
    known = set(METADATA.tables)
    faults = [
        Fault(name, "", "", "the table is missing: `bench db repair` makes an empty one")
        for name in sorted(known - names)
    ]
    strange = {*names - known - {_VERSION_TABLE}, *found.get_view_names()}
    faults += [Fault(name, "", "", "no such table or view belongs here") for name in strange]
    faults += _trigger_faults(connection)
    for name in sorted(known & names):
        columns = {column["name"]: column for column in found.get_columns(name)}
        faults += _column_faults(METADATA.tables[name], columns)
    return faults


def _trigger_faults(connection: Connection) -> list[Fault]:
    query = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
    }[connection.dialect.name]
    found = connection.execute(text(query)).scalars()
    return [Fault(FILE, str(name), "", "no trigger belongs here") for name in found]


def _column_faults(table: Table, columns: Mapping[str, Any]) -> Iterator[Fault]:
    for column in table.columns:
        if column.name not in columns:
            yield Fault(table.name, "", column.name, "the column is missing")
            continue
        kind = columns[column.name]["type"]
        if kind._type_affinity is not column.type._type_affinity:
            yield Fault(table.name, "", column.name, f"the type is {kind}, not {column.type}")
    for name in sorted(set(columns) - {column.name for column in table.columns}):
        yield Fault(table.name, "", name, "no such column belongs here")


@contextmanager
def tolerant_text(connection: Connection) -> Iterator[None]:
    """A context in which text that is not UTF-8 is read, with its bytes as lone surrogates."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        yield
        return
    before = driver.text_factory
    driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        driver.text_factory = before


def raw_rows(
    connection: Connection, table: Table, order: Sequence[str] = ()
) -> Iterator[Mapping[str, Any]]:
    """The rows of a table as the driver gives them, without converting types, one at a time."""
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(column.name) for column in table.columns)
    sorting = f" ORDER BY {', '.join(map(quote, order))}" if order else ""
    query = text(f"SELECT {names} FROM {quote(table.name)}{sorting}")
    streamed = query.execution_options(stream_results=True, max_row_buffer=200)
    keys = [column.name for column in table.columns]
    for row in connection.execute(streamed):
        yield dict(zip(keys, row, strict=True))


def type_faults(table: Table, key: str, row: Mapping[str, Any] | RowMapping) -> Iterator[Fault]:
    """The values of a row that have another type than their column."""
    for column in table.columns:
        value = row[column.name]
        fault = _type_fault(column, value)
        if fault:
            yield Fault(table.name, key, column.name, fault)


def _type_fault(column: Column[Any], value: object) -> str:
    if value is None:
        return "" if column.nullable else "the value is missing"
    if not isinstance(value, next(_TYPES[t] for t in _TYPES if isinstance(column.type, t))):
        return f"the value is {type(value).__name__}, not {column.type}"
    if isinstance(value, str) and not value.isascii() and _has_surrogates(value):
        return "the text is not UTF-8"
    if isinstance(column.type, Boolean) and value not in (0, 1):
        return f"the value is {value!r}, neither true nor false"
    return ""


def _has_surrogates(value: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in value)

"""Connections to the database: engines with explicit transactions, and errors as sentences."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from bench.core.errors import BenchError, UnavailableError

DEFAULT_DATABASE_URL = "sqlite:///bench.db"
BUSY_SECONDS = 30
"""How long a writer waits for the lock of another one."""

_EXPLICIT = {"timeout": BUSY_SECONDS, "isolation_level": None}
"""Turns off the implicit transactions of Python's SQLite driver."""

_CAUSES = (
    ("unable to open", "the file cannot be opened: give a path in a folder that can be written"),
    ("not a database", "the file is not a database: give another path"),
    ("readonly", "the file cannot be written: change its permissions, or choose another path"),
    ("is full", "the disk is full: recorded outcomes are safe, free some space and run again"),
    ("disk i/o", "the disk failed: run `bench db check`, then continue from a backup if needed"),
    ("malformed", "the file is damaged: continue from a backup, see `bench db check`"),
    ("locked", f"another process held it for {BUSY_SECONDS} seconds: wait for it and run again"),
    ("connection", "the server does not answer: start it, or check the URL"),
)


_URL_FORMS = "sqlite:///bench.db or postgresql://user@host/name"


def resolve_url(url: str | None) -> URL:
    """The database URL: `url`, else $BENCH_DB, else bench.db in the current folder.

    Raises BenchError where it names neither a SQLite file nor a PostgreSQL database.
    """
    text = url or os.environ.get("BENCH_DB") or DEFAULT_DATABASE_URL
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise BenchError(f"{text!r} is not a database URL: write {_URL_FORMS}.") from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite" or parsed.query:
        raise BenchError(f"{text!r} is neither a plain sqlite:/// nor a postgresql:// URL.")
    if parsed.database in (None, "", ":memory:"):
        raise BenchError(f"{text!r} is a database in memory and would be lost: name a file.")
    return parsed.set(database=str(Path(str(parsed.database)).expanduser().absolute()))


def sqlite_file(url: URL) -> Path | None:
    """The SQLite file; None on a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def url_text(url: URL) -> str:
    """The database as messages name it, without a password."""
    path = sqlite_file(url)
    return str(path) if path else url.render_as_string(hide_password=True)


def open_engine(url: URL, *, read_only: bool = False, foreign_keys: bool = True) -> Engine:
    """An engine with explicit transactions, not connected yet."""
    path = sqlite_file(url)
    if path is None:
        return _server_engine(url)
    engine = _reading_engine(url, path) if read_only else create_engine(url, connect_args=_EXPLICIT)
    pragmas = [f"foreign_keys={int(foreign_keys)}", "trusted_schema=OFF"]
    pragmas += ["query_only=ON"] if read_only else ["journal_mode=WAL", "synchronous=FULL"]
    _prepare_connections(engine, pragmas, read_only=read_only)
    return engine


def _prepare_connections(engine: Engine, pragmas: list[str], *, read_only: bool) -> None:
    """Set the pragmas of every connection, and begin every transaction explicitly."""

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = read_only or connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def reader_of(engine: Engine) -> Engine:
    """The same pool for transactions that read one snapshot and take no write lock."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(reading=True)
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def upsert(connection: Connection, table: Table, values: Mapping[str, object]) -> None:
    """Insert a row, or replace the one with the same primary key."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    keys = {column.name for column in table.primary_key}
    rest = {name: value for name, value in values.items() if name not in keys}
    insert = dialect.insert(table).values(values)
    connection.execute(insert.on_conflict_do_update(index_elements=sorted(keys), set_=rest))


def insert_new(connection: Connection, table: Table, rows: list[dict[str, object]]) -> None:
    """Insert the rows whose primary key is new."""
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


@contextmanager
def explain_errors(url: URL) -> Iterator[None]:
    """Turns a known error of the database driver into UnavailableError with a remedy."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        message = str(error.orig).strip().lower()
        for mark, sentence in _CAUSES:
            if mark in message:
                raise UnavailableError(f"{url_text(url)}: {sentence}.") from error
        raise


def copy_file(path: Path, target: Path) -> None:
    """Copy a SQLite database in use, all or nothing. Raises UnavailableError where that fails."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(partial)) as copy,
        ):
            source.backup(copy)
        partial.replace(target)
    except (sqlite3.Error, OSError) as error:
        if partial.is_file():
            partial.unlink()
        raise UnavailableError(
            f"no backup of {path} at {target} ({error}): give a path in a folder that can be"
            " written."
        ) from error


def _reading_engine(url: URL, path: Path) -> Engine:
    if os.access(path.parent, os.W_OK):
        url = url.set(database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
        return create_engine(url, connect_args=_EXPLICIT)

    def connect() -> sqlite3.Connection:
        # Reading in WAL mode needs a file beside the database, except where no process writes: then
        # the file may be opened as immutable. Checked for each connection: a writer may start.
        writing = path.with_name(f"{path.name}-wal").exists()
        uri = f"file:{quote(str(path))}?mode=ro" + ("" if writing else "&immutable=1")
        return sqlite3.connect(
            uri, BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
        )

    return create_engine(url, creator=connect, poolclass=NullPool)


def _server_engine(url: URL) -> Engine:
    try:
        return create_engine(url, pool_pre_ping=True)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise UnavailableError(
            "PostgreSQL needs the extra 'postgres': pip install 'gauntlet-bench[postgres]'."
        ) from error

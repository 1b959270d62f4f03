"""Connections to the database: engines with explicit transactions, and errors as sentences."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sqlalchemy import Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from bench.core.errors import BenchError, StorageError, UnavailableError
from bench.store.leftovers import partial_path
from bench.store.network_disk import require_local_disk
from bench.store.waiting import why_not_writable

DEFAULT_DATABASE = "bench.db"
BUSY_SECONDS = 30
"""How long a writer waits for the lock of another one."""

_EXPLICIT = {"timeout": BUSY_SECONDS, "isolation_level": None}
"""Turns off the implicit transactions of Python's SQLite driver."""


class Cause(NamedTuple):
    """What an error of a database driver means."""

    mark: str
    """Part of the driver's message, in lower case."""
    sentence: str
    temporary: bool = False
    """Whether a run waits for its end."""


_CAUSES = (
    Cause(
        "unable to open", "the file cannot be opened: give a path in a folder that can be written"
    ),
    Cause("readonly", "the file cannot be written: change its permissions, or choose another path"),
    Cause(
        "locked",
        f"another process held it for {BUSY_SECONDS} seconds: wait for it and run again",
        temporary=True,
    ),
    Cause("lock timeout", "another process holds a lock: is a worker stopped?", temporary=True),
    Cause(
        "disk i/o", "the disk failed: run `bench db check`, then continue from a backup if needed"
    ),
    Cause(
        "connection",
        "the server does not answer: start it, or check the URL",
        temporary=True,
    ),
)
_FULL = "the disk is full: recorded outcomes are safe, free some space and run again"
_STATES = {
    "53100": "the disk of the server is full: free some space there",
    "53300": "the server has no free connection: close others, or raise max_connections",
    "57P01": "the server shuts down: start it again",
    "57P02": "the server ended all connections after a crash: it starts again by itself",
    "57P03": "the server starts up or shuts down",
    "25006": "the server accepts no writes now",
    "25P03": "the server ended an idle transaction: was this process stopped?",
}
"""Error codes of PostgreSQL that end by themselves or by what the sentence asks for."""


_DISK_MARKS = ("disk i/o", "unable to open", "readonly")


_DAMAGE = (
    ("not a database", "the file is not a database: give another path, or restore a backup"),
    ("malformed", "the file is damaged: restore a backup, or see `bench db check`"),
    ("unsupported file format", "the file is damaged: restore a backup, or see `bench db check`"),
    ("could not decode", "a text is damaged: `bench db check` names its place"),
    ("no such table", "a table is missing: `bench db check` names it"),
    ("no such column", "a column is missing: `bench db check` names it"),
)
"""The same for messages of SQLite that mean damage."""


class DamagedError(StorageError):
    """A SQLite file has other contents than this program writes."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause
        """The message of SQLite."""


_OPEN_OPTIONS = {
    "host", "hostaddr", "port", "user", "dbname", "sslmode", "connect_timeout", "application_name",
    "target_session_attrs",
}  # fmt: skip
"""Options in the query of a URL that are never secret; the others are not shown."""
_URL_FORMS = "bench.db, sqlite:///bench.db or postgresql://user@host/name"


def resolve_url(text: str | None) -> URL:
    """The database: `text`, else $BENCH_DB, else bench.db in the current folder.

    A text with `://` is a URL; any other is the path of a SQLite file, character by character.
    Raises BenchError where it names neither a SQLite file nor a PostgreSQL database.
    """
    given = text or os.environ.get("BENCH_DB") or DEFAULT_DATABASE
    shown = without_secrets(given)
    if "://" not in given:
        return _file_url(given, shown)
    try:
        parsed = make_url(given)
    except (ArgumentError, ValueError):
        # Their messages may quote a part of the URL, so that they are not chained.
        raise BenchError(f"{shown!r} is not a database URL: write {_URL_FORMS}.") from None
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite" or parsed.query:
        raise BenchError(
            f"{shown!r} is neither a plain sqlite:/// nor a postgresql:// URL; a path is written"
            " without sqlite:///."
        )
    return _file_url(str(parsed.database or ""), shown)


def _file_url(path: str, shown: str) -> URL:
    """The URL of a SQLite file; raises BenchError where the path cannot be one."""
    if path in ("", ":memory:"):
        raise BenchError(f"{shown!r} is a database in memory and would be lost: name a file.")
    if re.match(r"([\w+.-]+:?//+|[\w+.-]+:)?[^/]*:[^/]*@", path):
        raise BenchError(
            f"{shown!r} looks like a server, not like a file: write {_URL_FORMS}, or ./ before a"
            " file's name."
        )
    if "\0" in path:
        raise BenchError(f"{shown!r} holds a null character: name a file without it.")
    return URL.create("sqlite", database=str(Path(path).expanduser().absolute()))


def sqlite_file(url: URL) -> Path | None:
    """The SQLite file; None on a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def url_text(url: URL) -> str:
    """The database as messages name it, without a password."""
    path = sqlite_file(url)
    return str(path) if path else without_secrets(url.render_as_string(hide_password=True))


def without_secrets(text: str) -> str:
    """A database URL, valid or not, without its password and what may be one.

    >>> without_secrets("postgresql://u:secret@host/name?password=secret&port=1")
    'postgresql://u:***@host/name?password=***&port=1'
    """
    before, at, after = text.rpartition("@")
    scheme = re.match(r"([\w+.-]*:?//+)?", before)
    start = scheme.end() if scheme else 0
    user, colon, _ = before[start:].partition(":")
    if colon:
        before = f"{before[:start]}{user}:***"
    if at:  # a password may stand where the port is expected
        after = re.sub(r"^([^/?:]*):(?!\d+(?:[/?]|$))[^/?]*", r"\1:***", after)
    query = r"([?&;])([^=&;]*)=[^&;]*"
    return re.sub(
        query,
        lambda found: found[0] if found[2] in _OPEN_OPTIONS else f"{found[1]}{found[2]}=***",
        f"{before}{at}{after}",
    )


def open_engine(url: URL, *, read_only: bool = False, foreign_keys: bool = True) -> Engine:
    """An engine with explicit transactions, not connected yet.

    Raises UnavailableError for a SQLite file on a network disk that is to be written.
    """
    path = sqlite_file(url)
    if path is None:
        return _server_engine(url)
    if not read_only:
        require_local_disk(path)
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


def upsert(connection: Connection, table: Table, *rows: Mapping[str, object]) -> None:
    """Insert rows of the same columns, each in place of the one with its primary key."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    keys = {column.name for column in table.primary_key}
    insert = dialect.insert(table)
    replaced = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    statement = insert.on_conflict_do_update(index_elements=sorted(keys), set_=replaced)
    connection.execute(statement, [dict(row) for row in rows])


def transaction_number(connection: Connection) -> int | None:
    """The number of this transaction on a server, by which its outcome is known later."""
    if connection.dialect.name != "postgresql":
        return None
    return int(connection.execute(text("SELECT txid_current()")).scalar_one())


def was_committed(connection: Connection, number: int) -> bool | None:
    """Whether the transaction with this number was committed; None while that is undecided."""
    query = text("SELECT txid_status(CAST(:number AS bigint))")
    status = connection.execute(query, {"number": number}).scalar()
    return None if status == "in progress" else status == "committed"


def insert_new(connection: Connection, table: Table, rows: list[dict[str, object]]) -> int:
    """Insert the rows whose primary key is new; returns their number."""
    if not rows:
        return 0
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing()
    # Without the option the count of PostgreSQL's driver is lost, and -1 stands for it.
    return connection.execute(
        statement, rows, execution_options={"preserve_rowcount": True}
    ).rowcount


@contextmanager
def explain_errors(url: URL) -> Iterator[None]:
    """Turns a known error of the database driver into StorageError with a remedy.

    Damage of a SQLite file becomes DamagedError.
    """
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        known = _why_unavailable(url, error.orig)
        if known is None:
            message = str(error.orig).strip().lower()
            for mark, sentence in _DAMAGE if sqlite_file(url) else ():
                if mark in message:
                    raise DamagedError(f"{url_text(url)}: {sentence}.", message) from error
            raise
        raise StorageError(f"{url_text(url)}: {known[0]}.", temporary=known[1]) from error


def _why_unavailable(url: URL, error: object) -> tuple[str, bool] | None:
    """What an error of the driver means, and whether it may end; None where it is not known."""
    state = str(getattr(error, "sqlstate", ""))
    if state in _STATES:
        return _STATES[state], True
    message = str(error).strip().lower()
    path = sqlite_file(url)
    if path is not None and any(mark in message for mark in _DISK_MARKS):
        # The driver names a quota or a read-only mount by the words for a failed disk.
        reason = why_not_writable(path.parent)
        if reason:
            return f"its disk {reason}; recorded outcomes are safe", True
    if "is full" in message:
        return _FULL, True
    found = (cause for cause in _CAUSES if cause.mark in message)
    return next(((cause.sentence, cause.temporary) for cause in found), None)


def move_log_into_file(engine: Engine) -> None:
    """Move what SQLite holds in its write-ahead log into the file, unless a process reads it."""
    with suppress(DatabaseError, InterfaceError), closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=200")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.close()


def copy_file(path: Path, target: Path) -> None:
    """Copy a SQLite database in use, all or nothing. Raises UnavailableError where that fails."""
    partial = partial_path(target)
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
    options = {name: value for name, value in _SERVER_OPTIONS.items() if name not in url.query}
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args=options)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise UnavailableError(
            "PostgreSQL needs the extra 'postgres': pip install 'gauntlet-bench[postgres]'."
        ) from error

    @event.listens_for(engine, "connect")
    def _prepare(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        for name, value in _SESSION.items():
            cursor.execute(f"SET {name} = '{value}'")
        cursor.close()
        connection.commit()

    return engine


_SERVER_OPTIONS = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip
"""Options of a connection unless the URL sets them: a host that has vanished is noticed."""
_SESSION = {"lock_timeout": f"{BUSY_SECONDS}s", "idle_in_transaction_session_timeout": "60s"}
"""Settings of a session: a process stopped inside a transaction does not block the others."""

"""The revision of a database, and its upgrade to the newest one, all or nothing."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import URL, Connection

from bench.core.errors import UnavailableError
from bench.store import seals
from bench.store.database import copy_file, open_engine, sqlite_file, url_text
from bench.store.tables import REVISIONS

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6761756E
"""Key of the PostgreSQL advisory lock: one migration at a time."""


def found_in(connection: Connection, url: URL) -> str | None:
    """The revision of a database; None where it is empty.

    Raises UnavailableError where the database belongs to another program.
    """
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables and connection.dialect.name == "sqlite":
        raise UnavailableError(
            f"{url_text(url)} belongs to another program (it has a table"
            f" {min(tables)!r}): give another path."
        )
    return None


def refuse_newer(url: URL, revision: str | None, known: tuple[str, ...] = REVISIONS) -> None:
    """Raises UnavailableError where a newer program wrote the database."""
    if revision is not None and revision not in known:
        raise UnavailableError(
            f"{url_text(url)} has revision {revision}, this program knows up to {known[-1]}:"
            " update gauntlet-bench, or name another database."
        )


def upgrade(
    url: URL, *, migrations: Path = MIGRATIONS, known: tuple[str, ...] = REVISIONS
) -> Path | None:
    """Create the tables or bring them to the newest revision, in one explicit transaction.

    A SQLite file with tables is copied first; returns the path of that copy, if one was made.
    Raises UnavailableError where the database cannot be upgraded; it is then unchanged.
    """
    # A migration may drop and create a table, so references are checked at the end instead.
    engine = open_engine(url, foreign_keys=False)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            revision = found_in(connection, url)
            refuse_newer(url, revision, known)
            if revision == known[-1]:
                return None
            backup = _backup(url, revision)
            _migrate(connection, migrations)
            if revision is not None and revision < seals.FIRST_REVISION:
                seals.seal_all(connection)
            _refuse_dangling(connection)
        return backup
    finally:
        engine.dispose()


def _backup(url: URL, revision: str | None) -> Path | None:
    path = sqlite_file(url)
    if path is None or revision is None:
        return None
    target = path.with_name(f"{path.name}.{revision}.backup")
    copy_file(path, target)
    return target


def _migrate(connection: Connection, migrations: Path) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")


def _refuse_dangling(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if dangling is not None:
            raise UnavailableError(
                f"{url_text(connection.engine.url)} has a row of {dangling[0]!r} that refers to"
                " a missing row: the database was not changed; run `bench db check`."
            )

"""The store's tests run on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from bench.store import Store
from tests.fixtures.sealed_database import fill
from tests.store.servers import (
    PROGRAMS,
    PostgresServer,
    SmallDisk,
    postgres_server,
    small_disk,
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the tests, which they may stop and start again."""
    if not PROGRAMS:
        pytest.skip("no PostgreSQL server programs in /usr/lib/postgresql")
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def server(postgres: PostgresServer) -> str:
    """The URL of that server."""
    return postgres.url


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small disk that can be filled."""
    try:
        with small_disk(tmp_path / "disk") as made:
            yield made
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that does not exist yet, or is empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bench.db'}"
    server = str(request.getfixturevalue("server"))
    engine = create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return server


@pytest.fixture
def store(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("BENCH_ARTIFACTS", str(tmp_path / "artifacts"))
    with Store.open(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a row in every table of results, in one file."""
    path = tmp_path_factory.mktemp("filled") / "bench.db"
    with Store.open(f"sqlite:///{path}") as store:
        fill(store)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    """A copy that a test may edit."""
    return Path(shutil.copy(filled, tmp_path / "bench.db"))


@pytest.fixture(scope="module")
def dead() -> str:
    """The id of a process that has ended."""
    code = "from bench.store.process_id import process_id; print(process_id())"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()

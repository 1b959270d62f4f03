"""The published database: who opens it, and that nothing is written into it or beside it."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bench.core.errors import UnavailableError
from bench.store import Store, published
from bench.store.database import resolve_url
from bench.store.published import OR_PUBLISHED, address_for_readers, is_published


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty database in place of the published one, and another folder as the current one."""
    path = tmp_path / "published" / "results.db"
    path.parent.mkdir()
    Store.open(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    monkeypatch.setattr(published, "published_database", lambda: path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("BENCH_DB", raising=False)
    monkeypatch.setenv(OR_PUBLISHED, "1")
    return path


def contents(folder: Path) -> dict[str, str]:
    """Name and digest of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_readers_open_it_only_while_there_is_no_other(shipped: Path) -> None:
    assert address_for_readers() == f"sqlite:///{shipped}"
    Path("bench.db").touch()
    assert address_for_readers() == "bench.db"


def test_a_database_that_is_asked_for_is_never_replaced(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DB", "postgresql://u@host/name")
    assert address_for_readers() == "postgresql://u@host/name"
    monkeypatch.setenv("BENCH_DB", "sqlite:///none.db")
    monkeypatch.delenv(OR_PUBLISHED)
    assert address_for_readers() == "sqlite:///none.db"


def test_without_a_published_file_the_usual_one_is_named(shipped: Path) -> None:
    shipped.unlink()
    assert address_for_readers() == "bench.db"


def test_it_is_known_by_any_path(shipped: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(shipped)
    assert is_published(resolve_url(str(link)))
    assert not is_published(resolve_url("bench.db"))
    assert not is_published(resolve_url("postgresql://u@host/name"))


def test_a_writer_is_refused_and_a_reader_leaves_no_trace(shipped: Path) -> None:
    before = contents(shipped.parent)
    with pytest.raises(UnavailableError, match="only read: copy it with `bench db backup`"):
        Store.open(f"sqlite:///{shipped}")
    with Store.open(f"sqlite:///{shipped}", read_only=True) as store:
        store.root()
        assert contents(shipped.parent) == before
        store.backup(Path("copy.db"))
    assert contents(shipped.parent) == before
    Store.open("copy.db").close()

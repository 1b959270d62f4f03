"""`bench db` checks, copies and upgrades a database; exit code 4 names a damaged one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from bench.cli.maintenance_commands import database
from bench.store import PlannedCell, Store
from tests.store.chunks import leased, tiny_chunk
from tests.store.workers import keep_tiny_examples, tiny_cell


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with one finished cell."""
    path = f"sqlite:///{tmp_path / 'bench.db'}"
    with Store.open(path) as store:
        keep_tiny_examples(store)
        cell = tiny_cell(items=2)
        store.plan([PlannedCell(cell)])
        lease = leased(store, cell.key)
        store.record(lease, tiny_chunk(0, 1))
        store.finish(lease)
    return path


def damage(url: str) -> None:
    """Change a stored figure without its digest."""
    with create_engine(url).begin() as connection:
        connection.execute(text("update cells set robust = robust + 1"))


def test_an_intact_database_passes(url: str) -> None:
    done = CliRunner().invoke(database, ["check", "--db", url])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "every stored key and digest is correct" in done.stderr


def test_a_damaged_database_has_exit_code_4(url: str) -> None:
    damage(url)
    done = CliRunner().invoke(database, ["check", "--db", url])
    assert done.exit_code == 4
    assert tiny_cell(items=2).key[:12] in done.stdout


def test_a_backup_is_a_database_of_its_own(url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    done = CliRunner().invoke(database, ["backup", str(copy), "--db", url])
    assert (done.exit_code, done.stdout) == (0, f"{copy}\n")
    with Store.open(f"sqlite:///{copy}", read_only=True) as store:
        assert store.check() == []
        assert [row.state for row in store.cells()] == ["done"]


def test_an_upgrade_of_a_current_database_changes_nothing(url: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(database, ["upgrade", "--db", url])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'bench.db'}\n")
    assert list(tmp_path.glob("*.backup")) == []

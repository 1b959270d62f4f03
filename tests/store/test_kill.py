"""Processes killed at any moment: acknowledged outcomes stay, the others are recorded again."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from bench.core.cells import CellState
from bench.store import PlannedCell, Store, migrate
from bench.store.database import resolve_url
from bench.store.tables import REVISIONS
from tests.store.test_database import LATER, NEXT
from tests.store.workers import keep_tiny_examples, tiny_cell

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")

CELLS, ITEMS = 50, 80


def run_workers(*arguments: str) -> list[str]:
    """The lines that the program of `workers` prints."""
    command = [sys.executable, "-m", "tests.store.workers", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


@pytest.mark.slow
def test_kill_9_loses_no_committed_outcome_and_repeats_none(tmp_path: Path) -> None:
    url, log = f"sqlite:///{tmp_path / 'bench.db'}", tmp_path / "log"
    cells = [tiny_cell(number, ITEMS) for number in range(CELLS)]
    with Store.open(url) as store:
        keep_tiny_examples(store)
        store.plan(PlannedCell(cell) for cell in cells)
    (kills,) = run_workers("chaos", url, str(log), "3", "120", "120")
    # A write cut short by a kill leaves a line without its end; none here is that long.
    lines = [line.split() for line in log.read_text().splitlines()]
    acknowledged: set[tuple[str, str]] = set()
    for event, key, *items in lines:
        pairs = {(key, item) for item in items}
        assert not (event == "play" and pairs & acknowledged), "an acknowledged item came again"
        acknowledged |= pairs if event == "ack" else set()
    with Store.open(url) as store:
        assert store.check() == []
        rows = store.cells()
        for row in rows:
            found, salt = store.outcomes(row.key), int(row.cell.attack[1:])
            assert found.item.tolist() == sorted(set(found.item.tolist()))
            assert found.forwards.tolist() == [item * 7 + salt for item in found.item.tolist()]
            told = {int(item) for key, item in acknowledged if key == row.key}
            assert told <= set(found.item.tolist())
    assert Counter(row.state for row in rows) == {CellState.DONE: CELLS}
    assert int(kills) >= 20


def test_a_kill_while_a_database_is_created_leaves_no_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    states = run_workers("upgrade", url, str(migrate.MIGRATIONS), *REVISIONS)
    assert len(states) > 15
    assert {state.split()[0] for state in states} == {"ok"}
    assert {state.split()[2] for state in states} == {"0"}
    Store.open(url, read_only=True).close()


def test_a_kill_in_the_middle_of_a_migration_leaves_the_database_untouched(tmp_path: Path) -> None:
    path = tmp_path / "bench.db"
    shutil.copytree(migrate.MIGRATIONS, tmp_path / "newer")
    (tmp_path / "newer" / "versions" / f"{NEXT}_note.py").write_text(LATER)
    with Store.open(f"sqlite:///{path}") as store:
        store.plan([PlannedCell(tiny_cell())])
    states = run_workers("upgrade", f"sqlite:///{path}", str(tmp_path / "newer"), *REVISIONS, NEXT)
    assert len(states) > 10
    assert len(set(states)) == 1
    assert states[0].startswith("ok")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(NEXT,)]
        assert connection.execute("SELECT attack, note FROM cells").fetchall() == [("a0", "a0")]


def test_a_kill_while_tables_for_weights_are_added_leaves_the_database_untouched(
    tmp_path: Path,
) -> None:
    path, older = tmp_path / "bench.db", tmp_path / "older"
    shutil.copytree(migrate.MIGRATIONS, older)
    for revision in ("0007_weights", "0008_points", "0009_fits"):
        (older / "versions" / f"{revision}.py").unlink()
    before = REVISIONS[: REVISIONS.index("0007")]
    migrate.upgrade(resolve_url(f"sqlite:///{path}"), migrations=older, known=before)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO examples VALUES ('e', 'digits', 0, x'', '[]', '[]', '')")
        connection.commit()
    states = run_workers("upgrade", f"sqlite:///{path}", str(migrate.MIGRATIONS), *REVISIONS)
    assert len(states) > 5
    assert len(set(states)) == 1
    assert states[0].startswith("ok")
    with Store.open(f"sqlite:///{path}", read_only=True) as store:
        assert store.examples("e").dataset == "digits"
        assert store.check() == []
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
    assert {("weights",), ("replications",), ("seals",)} <= set(tables)
    assert (tmp_path / "bench.db.0006.backup").exists()

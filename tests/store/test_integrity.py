"""The integrity check names each fault of a stored cell."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from bench.store import PlannedCell, Store
from bench.store.integrity import problems
from tests.store.chunks import leased, tiny_chunk
from tests.store.workers import tiny_cell

FIGURES = ("robust", "out_of_ball", "fragile", "broken_8bit", "forwards", "gradients", "looks")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one finished cell of four items in two chunks."""
    path = tmp_path / "bench.db"
    with Store.open(f"sqlite:///{path}") as store:
        cell = tiny_cell(items=4)
        store.plan([PlannedCell(cell)])
        lease = leased(store, cell.key)
        store.record(lease, tiny_chunk(0, 1))
        store.record(lease, tiny_chunk(2, 3))
        store.finish(lease)
    return path


def faults(path: Path, *statements: str) -> list[str]:
    """What the check finds after these changes of the database."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
        found = problems(connection, path.parent / "artifacts")
    engine.dispose()
    return found


def test_an_unchanged_database_has_no_fault(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize("figure", FIGURES)
def test_a_changed_figure_is_named(path: Path, figure: str) -> None:
    (found,) = faults(path, f"update cells set {figure} = {figure} + 1")
    assert f"has {figure} that its outcomes do not give" in found


def test_a_changed_seal_is_found(path: Path) -> None:
    (found,) = faults(path, "update cells set seal = 'x'")
    assert "does not match its seal" in found


def test_changed_outcomes_are_found(path: Path) -> None:
    (found,) = faults(path, "update chunks set outcomes = x'00' where start = 2")
    assert "has 1 altered chunks of outcomes" in found


def test_a_missing_chunk_is_found(path: Path) -> None:
    found = faults(path, "delete from chunks where start = 2")
    assert any("counts 4 outcomes and has 2" in fault for fault in found)


def test_a_wrong_count_of_outcomes_is_found(path: Path) -> None:
    (found,) = faults(path, "update cells set items_done = 3")
    assert "counts 3 outcomes and has 4" in found


def test_an_item_that_is_stored_twice_is_found(path: Path) -> None:
    columns = "count, first, last, digest, exact, outcomes"
    copied = f"select cell, start + 4, {columns} from chunks"
    (found,) = faults(
        path,
        f"insert into chunks (cell, start, {columns}) {copied}",
        "update cells set items_done = 8, state = 'running'",
    )
    assert "has an item twice" in found


def test_a_chunk_without_a_cell_is_found(path: Path) -> None:
    found = faults(path, "update chunks set cell = 'unknown' where start = 2")
    assert any("refers to a missing row of cells" in fault for fault in found)


def test_a_damaged_page_is_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    pages = bytearray(path.read_bytes())
    pages[4096 * 6 : 4096 * 7] = bytes([255]) * 4096
    path.write_bytes(pages)
    with Store.open(f"sqlite:///{path}") as store:
        assert any("damaged" in fault for fault in store.check())

"""The integrity check names the place of each edit, and finds nothing where nothing was edited.

Its parts are bench.store.faults, bench.store.known_seals, bench.store.row_faults,
bench.store.cell_faults and bench.store.outcome_faults.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.store import Store, seals
from bench.store.faults import Fault
from bench.store.integrity import problems
from bench.store.tables import CARDS, EXAMPLES
from tests.fixtures.sealed_database import EDITS, Edit, apply, fill

FIGURES = ("robust", "out_of_ball", "fragile", "broken_8bit", "forwards", "gradients", "looks")


def faults(path: Path, statements: str = "") -> list[Fault]:
    """What the check finds after an edit."""
    apply(path, statements)
    with Store.open(f"sqlite:///{path}", read_only=True) as store:
        return store.check()


def test_an_unchanged_database_has_no_fault(store: Store) -> None:
    fill(store)
    assert store.check() == []


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_an_edit_is_found_at_its_place(path: Path, edit: Edit) -> None:
    found = faults(path, edit.statements)
    assert (edit.table, edit.column) in {(fault.table, fault.column) for fault in found}
    assert all(fault.sentence.isprintable() for fault in found)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_changed_figure_is_named_with_both_values(path: Path, figure: str) -> None:
    found = faults(path, f"update cells set {figure} = {figure} + 1 where state = 'done'")
    given = [f for f in found if f.column == figure and "its outcomes give" in f.text]
    assert len(given) == 8


def test_a_changed_cell_is_named_by_its_key(path: Path) -> None:
    with Store.open(f"sqlite:///{path}", read_only=True) as store:
        key = next(row.key for row in store.cells() if row.cell.attack == "pgd")
    found = faults(path, f"update cells set protocol = 7 where key = '{key}'")
    assert {fault.key for fault in found} == {key}
    assert {fault.column for fault in found} == {"protocol", "key"}


def test_an_edit_with_its_seal_is_found_by_what_contradicts_it(path: Path) -> None:
    """Labels that are sealed again contradict the clean outcomes."""
    apply(path, "update examples set labels = zeroblob(length(labels));")
    with Store.open(f"sqlite:///{path}") as store, store.writing() as connection:
        rows = connection.execute(EXAMPLES.select()).mappings().all()
        seals.seal_rows(connection, EXAMPLES, rows)
        (one, other) = problems(connection, path.parent)
    assert {one.column, other.column} == {"labels"}
    assert "7 labels contradict the clean outcomes" in one.text


def test_labels_are_not_compared_with_the_majority_of_a_random_defense(path: Path) -> None:
    """Its label is that of most draws, the rank of the true class that of their mean."""
    apply(
        path,
        "update examples set labels = zeroblob(length(labels));"
        "update cards set detail = json_set(detail, '$.randomness', 4) where kind = 'defense';",
    )
    with Store.open(f"sqlite:///{path}") as store, store.writing() as connection:
        for table in (CARDS, EXAMPLES):
            seals.seal_rows(connection, table, connection.execute(table.select()).mappings().all())
        found = problems(connection, path.parent)
    assert not any("contradict the clean outcomes" in fault.text for fault in found)


def test_a_missing_chunk_and_a_doubled_item_are_found(path: Path) -> None:
    found = faults(path, "delete from chunks where start = 5")
    assert any("counts 12 outcomes and has 5" in fault.text for fault in found)
    columns = "count, first, last, digest, exact, outcomes"
    found = faults(
        path,
        f"insert into chunks (cell, start, {columns}) select cell, 12, {columns} from chunks"
        " where start = 0",
    )
    assert any("an item is there twice" in fault.text for fault in found)
    assert {fault.column for fault in found if "start" in fault.column} == {"start"}


def test_a_chunk_without_a_cell_is_found(path: Path) -> None:
    found = faults(path, "update chunks set cell = 'lost ' || cell where start = 5")
    assert any("refers to a missing row of cells" in fault.text for fault in found)


def test_a_damaged_page_is_found(path: Path) -> None:
    pages = bytearray(path.read_bytes())
    pages[4096 * 6 : 4096 * 7] = bytes([255]) * 4096
    path.write_bytes(pages)
    with Store.open(f"sqlite:///{path}") as store:
        assert "file" in {fault.table for fault in store.check()}

"""A repair removes what the check names, and the next run gives the root of an untouched one.

Rows of a damaged file are read by bench.store.salvage.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bench.core.errors import UnavailableError
from bench.store import Store
from bench.store.damage import check_database
from bench.store.repair import repair
from tests.fixtures.sealed_database import EDITS, apply, fill

REPAIRED = (
    "two defenses' results swapped", "two defenses' outcomes swapped", "evidence deleted",
    "a strong attack's cells deleted", "a done cell set to failed", "labels zeroed",
    "the table of evidence dropped", "a column dropped", "cards renamed", "text that is not UTF-8",
    "another machine", "an altered picture", "a seal changed", "a trigger planted",
)  # fmt: skip


def root(path: Path) -> str:
    with Store.open(f"sqlite:///{path}", read_only=True) as store:
        return store.root()


def run_again(path: Path) -> None:
    """What another run of the same selection does."""
    with Store.open(f"sqlite:///{path}") as store:
        fill(store)
        assert store.check() == []


@pytest.mark.parametrize("name", REPAIRED)
def test_a_repaired_database_becomes_that_of_an_untouched_run(path: Path, name: str) -> None:
    before, copy = root(path), path.read_bytes()
    apply(path, next(edit.statements for edit in EDITS if edit.name == name))
    damaged = path.read_bytes()
    done = repair(f"sqlite:///{path}")
    assert damaged != copy
    assert done.backup is not None and done.backup.exists()
    assert check_database(f"sqlite:///{done.backup}") != []
    assert [fault for fault in done.left if fault.key == ""] == []
    run_again(path)
    assert root(path) == before


@pytest.mark.parametrize("page", [2, 9, 14, 20])
def test_damaged_pages_cost_only_what_lies_on_them(path: Path, page: int) -> None:
    before = root(path)
    content = bytearray(path.read_bytes())
    content[4096 * page : 4096 * (page + 1)] = bytes([255]) * 4096
    path.write_bytes(content)
    repair(f"sqlite:///{path}")
    run_again(path)
    assert root(path) == before


def test_a_file_that_is_no_database_is_written_anew(path: Path) -> None:
    before = root(path)
    path.write_bytes(bytes([255]) * 100 + path.read_bytes()[100:])
    done = repair(f"sqlite:///{path}")
    assert done.backup is not None and done.backup.read_bytes()[:100] == bytes([255]) * 100
    run_again(path)
    assert root(path) == before


def test_a_sound_database_is_left_as_it_is(path: Path) -> None:
    before = path.read_bytes()
    done = repair(f"sqlite:///{path}")
    assert (done.backup, done.removed.sentences, done.left) == (None, [], [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_was_removed_is_named(path: Path) -> None:
    apply(path, "update cells set robust = 0 where attack = 'pgd' and threat = 'l2';")
    done = repair(f"sqlite:///{path}")
    assert len(done.removed.cells) == 2
    assert all("pgd against" in line for line in done.removed.sentences)
    assert "must be evaluated again" in done.removed.sentences[0]


def test_a_second_repair_keeps_the_first_backup(path: Path) -> None:
    names = []
    for _ in range(2):
        apply(path, "update evidence set finding = 'passed' where defense = 'strong';")
        done = repair(f"sqlite:///{path}")
        assert done.backup is not None
        names.append(done.backup.name)
        run_again(path)
    assert names == ["bench.db.before-repair-1", "bench.db.before-repair-2"]


def test_a_database_that_is_being_written_is_not_repaired(path: Path) -> None:
    apply(path, "update cells set tier = 'safe';")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="another process writes"):
            repair(f"sqlite:///{path}")


def test_a_database_on_a_server_is_repaired_without_a_backup(store: Store, url: str) -> None:
    fill(store)
    before = store.root()
    with store.writing() as connection:
        connection.exec_driver_sql("update cells set tier = 'safe' where attack = 'pgd'")
    if url.startswith("postgresql"):
        with pytest.raises(UnavailableError, match="--no-backup"):
            repair(url)
    done = repair(url, backup=False)
    assert done.backup is None
    assert len(done.removed.cells) == 4
    fill(store)
    assert (store.check(), store.root()) == ([], before)

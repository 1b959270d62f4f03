"""Where published results come from, and which rows are of an earlier version of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.results.leaderboards import find_leaderboard
from bench.results.published import (
    ChangedCode,
    SourceRecord,
    as_record,
    file_digest,
    listed,
    mark_changed,
    published_facts,
)
from bench.results.ranking import load_ranking
from bench.store import Store
from tests.leaderboard.example_database import fill

FILES = ("plugins/a.py", "plugins/b.py", "plugins/shared.py", "bench/engine/e.py")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('published') / 'bench.db'}"
    with Store.open(url) as store:
        fill(store)
    return url


@pytest.fixture
def record(tmp_path: Path) -> SourceRecord:
    """A record of four files: two attacks share one of them."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    a, b, shared, engine = FILES
    return SourceRecord(
        {name: file_digest(tmp_path / name) for name in FILES},
        {"a": [a, shared], "b": [b, shared]},
        {"net": [b]},
        [engine],
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("plugins/a.py", ChangedCode(frozenset("a"))),
     ("plugins/b.py", ChangedCode(frozenset("b"), frozenset({"net"}))),
     ("plugins/shared.py", ChangedCode(frozenset("ab"))),
     ("bench/engine/e.py", ChangedCode(evaluation=True))],
)  # fmt: skip
def test_a_change_is_that_of_all_who_use_the_file(
    name: str, expected: ChangedCode, record: SourceRecord, tmp_path: Path
) -> None:
    assert record.changed(tmp_path) == ChangedCode()
    (tmp_path / name).write_text("# other\n")
    assert record.changed(tmp_path) == expected
    (tmp_path / name).unlink()
    assert record.changed(tmp_path) == expected


def test_line_ends_are_no_change(record: SourceRecord, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(f"# {name}\r\n".encode())
    assert record.changed(tmp_path) == ChangedCode()


def test_a_record_survives_its_file(record: SourceRecord, tmp_path: Path) -> None:
    (tmp_path / "sources.json").write_text(json.dumps(as_record(record)))
    assert SourceRecord.read(tmp_path / "sources.json") == record
    assert SourceRecord.read(tmp_path / "none.json") == SourceRecord()


def test_facts_are_those_of_the_database(example: str) -> None:
    with Store.open(example, read_only=True) as store:
        facts = published_facts(store)
        done = [row for row in store.cells() if row.state == "done"]
        assert facts.root == store.root()
        assert facts.date >= "2020" and len(facts.date) == 10
        keys = [row.key for row in done]
        assert set(facts.machines) == {
            one.sentence for some in store.machines(keys).values() for one in some
        }


def test_rows_of_changed_code_say_so_and_keep_their_figures(example: str) -> None:
    with Store.open(example, read_only=True) as store:
        leaderboard = find_leaderboard(store, None)
        rows = load_ranking(store, leaderboard)
    name, attack = rows[0].defense, leaderboard.required[0]
    one = mark_changed(rows, ChangedCode(defenses=frozenset({name})), leaderboard.required, "D")
    assert [row.defense for row in one] == [row.defense for row in rows]
    assert [row.rank for row in one] == [row.rank for row in rows]
    assert one[0].versions is not None and one[0].versions.older
    sentence = f"Evaluated until D with an earlier version of {name}."
    assert one[0].versions.sentences[-1] == sentence
    assert one[1:] == rows[1:]
    every = mark_changed(rows, ChangedCode(frozenset({attack})), leaderboard.required, "D")
    assert all(row.versions and row.versions.older for row in every)
    other = mark_changed(rows, ChangedCode(frozenset({"x"}), evaluation=True), ("y",), "D")
    assert other == rows


def test_many_names_are_counted() -> None:
    assert listed([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"

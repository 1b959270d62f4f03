"""Entries of strangers who err or mean harm: each is told in a sentence, nobody else is hurt."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import check
from bench.records import BenchError
from tests.planted import ATTACK, entry


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where entries lie."""
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "in"))
    return tmp_path / "in"


def marked(shelf: Path, name: str) -> Path:
    """An entry that leaves a file behind when a line of it is run; gives that file's path."""
    mark = shelf.parent / f"{name} ran"
    entry(shelf, name, f"open({str(mark)!r}, 'w').close()\n" + ATTACK.format(name=name))
    return mark


def test_checking_a_name_imports_no_entry_but_the_one_of_that_name(shelf: Path) -> None:
    one, other = marked(shelf, "one"), marked(shelf, "other")
    assert check.run("digits-l2")[0].kind == "threat"
    with pytest.raises(BenchError, match=r"Did you mean 'digits-l2'\?.* one, other,"):
        check.run("digits-l22")
    assert not one.exists() and not other.exists()
    results = check.run("one")
    assert [r.check for r in results][:2] == ["card-is-in-order", "passes-the-door"]
    assert {r.name for r in results} == {"one"}
    assert one.exists() and not other.exists()

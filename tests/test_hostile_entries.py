"""Entries of strangers who err or mean harm: each is told in a sentence, nobody else is hurt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import check
from bench.records import BenchError
from bench.registry import Registry
from tests.planted import ATTACK, CARD, entry


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


def card(name: str, **changes: str) -> str:
    """A card in order, but for these fields."""
    text = CARD.format(kind="attack", name=name)
    for field, value in changes.items():
        text = re.sub(rf"(?m)^{field} = .*$", f"{field} = {value}", text)
    return text


DEEP, LONG = "[" * 30_000, "9" * 5_000
CARDS = {
    "deep": ("a = " + DEEP, "is not TOML in UTF-8: RecursionError: maximum recursion depth"),
    "long": ("a = " + LONG, "is not TOML in UTF-8: Exceeds the limit (4300 digits)"),
    "hexadecimal": (card("hexadecimal", title="0x" + "f" * 60_000), "'title' came as a huge int:"),
    "dotted": (
        card("dotted").replace("title = ", "title." + ".".join("a" * 30_000) + " = "),
        "field 'title' came as a huge dict: Input should be a valid string.",
    ),
    "wordy": (
        card("wordy") + "".join(f"x{i} = 1\n" for i in range(4_000)),
        "; and 3990 more complaints.",
    ),
    "endless": (card("endless") + "x" * 50_000 + " = 1", "xxx…' is unknown."),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_chokes_its_reader_is_told_alone(shelf: Path, name: str) -> None:
    text, sentence = CARDS[name]
    (entry(shelf, name, "") / "card.toml").write_text(text)
    entry(shelf, "good", ATTACK.format(name="good"))
    found = Registry.load()
    assert list(found.entries) == ["good"]
    (problem,) = found.problems
    assert problem.startswith(f"card.toml of {name!r}") and sentence in problem
    assert problem.endswith(".") and len(problem) < 3_000

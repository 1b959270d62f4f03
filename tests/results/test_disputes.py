"""Disputes: read from a file beside the database, refused by one sentence where it is wrong."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.results.disputes import LARGEST_FILE, disputes_path, load_disputes

NOTE = """
[[dispute]]
defense = "trades"
threat = "digits-linf"
date = 2026-11-30
by = "A. Reader"
text = "The weights are those of another run."
"""


def test_disputes_are_read_newest_first(tmp_path: Path) -> None:
    file = tmp_path / "disputes.toml"
    newer = NOTE.replace("11-30", "12-01").replace('threat = "digits-linf"\n', "")
    file.write_text(NOTE + newer + 'answer = "They were replaced."\n')
    newest, older = load_disputes(file)
    assert (newest.date, older.date) == (date(2026, 12, 1), date(2026, 11, 30))
    assert older.is_about("trades", "digits-linf") and not older.is_about("trades", "digits-l2")
    assert newest.is_about("trades", "digits-l2") and not newest.is_about("linear", "digits-l2")
    assert older.sentence == "2026-11-30 A. Reader: The weights are those of another run. Open."
    assert newest.sentence.endswith("another run. Answer: They were replaced.")


def test_there_are_none_without_a_file(tmp_path: Path) -> None:
    assert load_disputes(tmp_path / "none.toml") == () == load_disputes(None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[dispute", "is no TOML file"),
        (NOTE.replace("defense", "defence"), "dispute.0.defense: Field required"),
        (NOTE + 'colour = "red"\n', "dispute.0.colour: Extra inputs"),
        (NOTE.replace("2026-11-30", '"soon"'), "dispute.0.date"),
        (NOTE.replace("A. Reader", ""), "dispute.0.by"),
        (NOTE.replace("The weights", "x" * 1001), "dispute.0.text"),
        ("note = 1\n", "note: Extra inputs"),
        ("#" * (LARGEST_FILE + 1), "has more than"),
    ],
)
def test_a_wrong_file_is_refused_by_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "disputes.toml"
    file.write_text(text)
    with pytest.raises(BenchError, match="no dispute was read") as caught:
        load_disputes(file)
    assert says in str(caught.value) and "\n" not in str(caught.value).partition("(")[0]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "disputes.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchError, match="is no TOML file"):
        load_disputes(file)


def test_the_file_lies_beside_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DISPUTES", raising=False)
    assert disputes_path(f"sqlite:///{tmp_path}/a.db") == tmp_path / "disputes.toml"
    assert disputes_path("postgresql://host/name") is None
    monkeypatch.setenv("BENCH_DISPUTES", "/notes.toml")
    assert disputes_path("postgresql://host/name") == Path("/notes.toml")

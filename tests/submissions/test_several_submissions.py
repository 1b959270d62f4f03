"""Several submissions at once: one line for each, and none replaces another's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.core.errors import BenchError
from bench.sandbox import isolation
from bench.store import Store
from bench.submissions import templates
from bench.submissions.intake import submission_paths


@pytest.fixture(autouse=True)
def no_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a sandbox, so that no code of a submission is run; tests/sandbox has the rest."""
    monkeypatch.setattr(isolation, "why_unavailable", lambda: "this test has no sandbox")
    monkeypatch.setenv("BENCH_DB", str(tmp_path / "bench.db"))
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(tmp_path / "submissions"))


def attack(folder: Path, name: str, authors: str = "An Author") -> Path:
    """The folder of a new attack."""
    place = templates.write_template("attack", name, folder)
    card = place / "card.toml"
    card.write_text(card.read_text().replace(templates.AUTHOR, authors))
    return place


def packed(place: Path, archive: str) -> Path:
    """A zip file of a submission's folder, beside it."""
    return Path(
        shutil.make_archive(str(place.parent.parent / archive), "zip", place.parent, place.name)
    )


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """Three good entries, one of them a folder; three that are rejected; two other files."""
    folder = tmp_path / "entries"
    attack(folder, "plain-folder")
    packed(attack(folder / "a", "first"), "a-first")
    packed(attack(folder / "b", "second"), "b-second")
    packed(attack(folder / "c", "first", "Another Author"), "c-copy")
    packed(attack(folder / "d", "unsigned", templates.AUTHOR), "d-unsigned")
    (folder / "e-broken.zip").write_bytes(b"PK\x03\x04")
    (folder / ".hidden.zip").write_bytes(b"")
    (folder / "notes.txt").write_text("not a submission")
    return folder


def submitted(*paths: Path) -> Result:
    return CliRunner().invoke(app, ["submit", *map(str, paths)])


def test_each_entry_of_a_folder_gets_a_line(entries: Path) -> None:
    done = submitted(entries)
    assert done.exit_code == 4
    lines = done.stdout.splitlines()
    assert [line.split(": ")[1].split(";")[0] for line in lines] == [
        "accepted", "accepted", "rejected", "rejected", "rejected", "accepted",
    ]  # fmt: skip
    assert lines[0].startswith("attack first ") and lines[1].startswith("attack second ")
    assert lines[2].startswith("c-copy.zip: ") and "the name 'first'" in lines[2]
    assert lines[3].startswith("d-unsigned.zip: ") and templates.AUTHOR in lines[3]
    assert lines[4].startswith("e-broken.zip: ") and "not a readable zip file" in lines[4]
    assert done.stderr.splitlines()[-1] == "3 accepted, 3 rejected"
    with Store.open(read_only=True) as store:
        states = {entry.name: entry.state for entry in store.submissions()}
    assert {name for name, state in states.items() if state == "queued"} == {
        "first", "second", "plain-folder",
    }  # fmt: skip


def test_the_first_of_two_with_one_name_stays(entries: Path, tmp_path: Path) -> None:
    submitted(entries)
    card = (tmp_path / "submissions" / "first" / "card.toml").read_text()
    assert "An Author" in card and "Another Author" not in card


def test_the_same_entries_again_change_nothing(entries: Path) -> None:
    first, again = submitted(entries), submitted(entries)
    assert first.stdout == again.stdout


def test_one_entry_that_is_named_twice_is_taken_in_once(entries: Path) -> None:
    done = submitted(entries / "a-first.zip", entries / "a-first.zip")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 1


def test_all_accepted_is_exit_code_0(entries: Path) -> None:
    done = submitted(entries / "a-first.zip", entries / "b-second.zip")
    assert done.exit_code == 0
    assert done.stderr.splitlines()[-1] == "2 accepted, 0 rejected"


def test_a_single_rejected_submission_is_an_error(entries: Path) -> None:
    done = submitted(entries / "e-broken.zip")
    assert isinstance(done.exception, BenchError)


def test_a_submission_is_not_searched_for_others(entries: Path) -> None:
    place = entries / "plain-folder"
    shutil.copy(entries / "a-first.zip", place)
    assert submission_paths([place]) == [place]


def test_a_folder_without_submissions_is_itself_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    done = submitted(tmp_path / "nothing")
    assert isinstance(done.exception, BenchError) and "card.toml" in str(done.exception)

"""Damage in sentences: commands that read end in one, and the check names the place."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.cli.maintenance_commands import database
from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import Chunk
from bench.store import Store
from bench.store.damage import check_database, explained_damage
from tests.benchmarks import integrity_check
from tests.fixtures.sealed_database import apply, fill
from tests.store.chunks import leased, planned
from tests.store.workers import tiny_outcomes
from tests.tools import tampering


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bench.db"
    with Store.open(f"sqlite:///{path}") as store:
        fill(store)
    return path


@pytest.mark.parametrize(
    ("statements", "place"),
    [
        ("update cells set state = 'dome' where attack = 'pgd'", "column state"),
        ("update evidence set sentence = cast(x'ff' as text)", "column sentence"),
        ("drop table cards", "cards: the table is missing"),
        ("alter table examples drop column classes", "examples, column classes"),
        ("update examples set classes = '['", "column classes"),
    ],
)
def test_a_report_on_a_damaged_database_is_one_sentence(
    path: Path, statements: str, place: str
) -> None:
    apply(path, statements)
    command = [sys.executable, "-m", "bench.cli", "report", "--db", str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 5
    assert len(told.stderr.splitlines()) == 1 and told.stderr.startswith("bench: ")
    assert "bench db check" in told.stderr
    done = CliRunner().invoke(database, ["check", "--db", f"sqlite:///{path}"])
    assert done.exit_code == 4
    assert place in done.stdout and "bench db check" not in done.output


@pytest.mark.parametrize("kept", [0, 50, 1000, 20_000])
def test_a_cut_file_is_damaged_and_an_empty_one_is_missing(path: Path, kept: int) -> None:
    with Store.open(f"sqlite:///{path}"):
        pass
    path.write_bytes(path.read_bytes()[:kept])
    if not kept:
        with pytest.raises(UnavailableError, match="no database"):
            check_database(f"sqlite:///{path}")
        return
    (first, *_) = check_database(f"sqlite:///{path}")
    assert first.table == "file"


def test_an_error_of_the_program_stays_as_it_is(path: Path) -> None:
    with pytest.raises(KeyError, match="own"), explained_damage(f"sqlite:///{path}"):
        raise KeyError("own")
    with pytest.raises(BenchError, match="as it was"), explained_damage(f"sqlite:///{path}"):
        raise BenchError("as it was")


def test_a_published_root_is_compared(path: Path) -> None:
    with Store.open(f"sqlite:///{path}", read_only=True) as store:
        own = store.root()
    url = f"sqlite:///{path}"
    done = CliRunner().invoke(database, ["check", "--db", url, "--root", own.upper()])
    assert done.exit_code == 0 and own in done.stderr
    done = CliRunner().invoke(database, ["check", "--db", url, "--root", "0" * 64])
    assert done.exit_code == 4 and own in done.stdout


def test_a_repair_prints_its_backup_and_what_is_evaluated_again(path: Path) -> None:
    apply(path, "update cells set tier = 'safe' where threat = 'l2';")
    done = CliRunner().invoke(database, ["repair", "--db", f"sqlite:///{path}"])
    assert done.exit_code == 0
    assert f"{path}.before-repair-1" in done.stderr
    assert done.stdout.count("must be evaluated again") == 4
    assert CliRunner().invoke(database, ["check", "--db", f"sqlite:///{path}"]).exit_code == 0


@pytest.mark.parametrize("damage", [tampering.flip, tampering.cut, tampering.cut_log])
def test_random_damage_is_found_or_changes_no_report(
    path: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    counts = tampering.trial(tampering.single_file(path), 8, 3, damage)
    assert sum(counts.values()) == 8
    assert counts[tampering.SILENT] == 0


def test_unseen_changes_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a check that finds nothing, a changed report is counted."""
    monkeypatch.setattr(tampering, "check_database", lambda url: [])
    edit = partial(tampering.edit, "update evidence set finding = 'passed';")
    counts = tampering.trial(tampering.single_file(path), 1, 0, edit)
    assert counts == {tampering.SILENT: 1}


def test_many_outcomes_are_checked_cell_by_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'many.db'}"
    integrity_check.write(url, 40_000)
    assert integrity_check.check(url) == 0
    assert capsys.readouterr().out.startswith("0 faults")
    apply(tmp_path / "many.db", "update cells set looks = looks + 1 where seed = 3")
    (fault,) = [fault for fault in check_database(url) if fault.text.startswith("is ")]
    assert (fault.table, fault.column) == ("cells", "looks")


def test_a_given_database_is_damaged_in_copies_that_find_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_ARTIFACTS", "")
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        exact = (np.array([0], np.int32), np.zeros((1, 1, 2, 2), np.float32))
        store.record(leased(store, planned(store)), Chunk(tiny_outcomes([0]), 0.0, exact=exact))
    monkeypatch.setattr(tampering, "EDITS", ())
    monkeypatch.setattr(tampering, "CUTS", 1)
    given = ["tampering", "--flips", "1", "--db", str(tmp_path / "bench.db")]
    monkeypatch.setattr(sys, "argv", given)
    before = (tmp_path / "bench.db").read_bytes()
    assert tampering.main() == 0
    assert (tmp_path / "bench.db").read_bytes() == before
    assert "1 random bytes changed" in capsys.readouterr().out
    (image,) = (tmp_path / "artifacts").rglob("*.safetensors")
    image.unlink()
    assert tampering.main() == 1
    assert "is damaged already" in capsys.readouterr().err

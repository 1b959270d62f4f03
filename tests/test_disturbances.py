"""The program that disturbs a run: small trials, and what it says of a loss."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.store import Store
from tests.store.servers import PROGRAMS
from tests.store.workers import tiny_outcomes
from tests.tools.disturbances import at_artifacts, judged, plan_cells, trial, undisturbed, work
from tests.tools.disturbed_matrix import missing, unnamed_files

KINDS = [("kills", 12), ("restarts", 2), ("full-disks", 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), KINDS)
def test_a_disturbed_run_loses_doubles_and_changes_nothing(kind: str, count: int) -> None:
    if kind == "restarts" and not PROGRAMS:
        pytest.skip("no PostgreSQL server programs in /usr/lib/postgresql")
    try:
        found = trial(kind, count, cells=12, pause=0.02)
    except PermissionError as error:
        pytest.skip(str(error))
    assert found.holds, found
    assert found.disturbances == count and found.acknowledged > 500


def test_what_was_lost_or_doubled_is_counted(tmp_path: Path) -> None:
    expected, url = undisturbed(tmp_path, cells=1), f"sqlite:///{tmp_path / 'bench.db'}"
    plan_cells(url, cells=1)
    log = tmp_path / "log"
    with at_artifacts(tmp_path / "artifacts"):
        work(url, log, 0.0)
        assert judged(url, log, 0, expected).holds
        with Store.open(url) as store:
            (row,) = store.cells()
        with log.open("a") as file:
            file.write(f"ack {row.key} 80 81\nplay {row.key} 3\n")
        found = judged(url, log, 0, expected)
        assert (found.lost, found.doubled, found.same) == (2, 1, True)
        assert not judged(url, log, 0, "0" * 64).same
        (file_, *_) = sorted((tmp_path / "artifacts").rglob("*.safetensors"))
        file_.write_bytes(b"")
        with pytest.raises(BenchError, match="altered"):
            judged(url, log, 0, expected)


@pytest.mark.slow
def test_real_commands_that_are_killed_lose_double_and_change_nothing() -> None:
    command = [sys.executable, "-m", "tests.tools.disturbed_matrix", "kills", "--count", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    found = re.match(r"5 kills, (\d) matrices, (\d) as undisturbed, 0 outcomes lost, 0 d", last)
    assert found and found[1] == found[2] != "0", done.stdout


def test_outcomes_that_are_missing_or_changed_later_are_counted() -> None:
    before, now = tiny_outcomes([0, 2, 5]), tiny_outcomes([0, 1, 2, 5, 7])
    assert missing(before, now) == missing(tiny_outcomes([]), now) == 0
    assert missing(before, None) == missing(before, tiny_outcomes([0, 2, 3])) == 3
    assert missing(now, before) == 5
    for column in ("verdict", "forwards", "loss"):
        changed = now._replace(**{column: getattr(now, column).copy()})
        getattr(changed, column)[2] = 1
        assert missing(before, changed) == 1, column


def test_files_of_images_that_no_row_names_are_counted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    plan_cells(url, cells=1)
    with at_artifacts(tmp_path / "artifacts"):
        work(url, tmp_path / "log", 0.0)
        with Store.open(url) as store:
            assert unnamed_files(store) == []
            (tmp_path / "artifacts" / "00").mkdir(exist_ok=True)
            unnamed = tmp_path / "artifacts" / "00" / f"{'0' * 64}.safetensors"
            unnamed.touch()
            assert unnamed_files(store) == [unnamed]

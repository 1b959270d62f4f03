"""Whole runs: the same outcomes for any batch size, item order, number of workers, or kill."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes
from bench.evaluation.events import (
    CellFinished,
    ChunkRecorded,
    Event,
    TrainingElsewhere,
)
from bench.evaluation.launcher import MatrixRun, make_worker
from bench.evaluation.plan import Selection
from bench.evaluation.reproduce import reproduce
from bench.referee.fresh_model import FreshModel
from bench.registry.registry import Registry
from bench.results import json_report
from bench.store import CellRow, Store, leases
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.tasks import training_task

ROOT = Path(__file__).parents[2]
SUBMISSIONS = ROOT / "submissions"
SELECTION = Selection(
    threats=("digits-linf",),
    defenses=("linear", "undefended", "bit-depth", "gaussian-noise"),
    attacks=("random", "fgsm", "bim", "pgd", "transfer"),
    examples=128,
)
KILLS = 20


@pytest.fixture(autouse=True)
def repository_submissions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(SUBMISSIONS))


def matrix_run(path: Path, **changes: object) -> MatrixRun:
    return replace(MatrixRun(SELECTION, f"sqlite:///{path}", quiet=True), **changes)  # type: ignore[arg-type]


def digest(url: str | None) -> str:
    with Store.open(url, read_only=True) as store:
        assert store.check() == []
        report = json_report.json_report(store, "digits-linf")
    cells = [c for c in report["matrix"] if c["attack"] in SELECTION.attacks]
    assert {cell["state"] for cell in cells} == {"done", "not applicable"}
    return str(report["digest"])


def rows(url: str | None) -> list[CellRow]:
    with Store.open(url, read_only=True) as store:
        return [row for row in store.cells() if row.cell.attack != CLEAN]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> MatrixRun:
    """The small matrix, evaluated once with batches of 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_SUBMISSIONS", str(SUBMISSIONS))
        whole = matrix_run(tmp_path_factory.mktemp("whole") / "bench.db", batch=64)
        assert whole.run() == 0
    return whole


@pytest.mark.parametrize("batch", [7, 32, 512])
def test_the_batch_size_changes_no_verdict(finished: MatrixRun, tmp_path: Path, batch: int) -> None:
    other = matrix_run(tmp_path / "bench.db", batch=batch)
    assert other.run() == 0
    assert digest(other.url) == digest(finished.url)


def test_the_item_order_changes_no_verdict(finished: MatrixRun, tmp_path: Path) -> None:
    shuffled = matrix_run(tmp_path / "bench.db")
    generator = np.random.default_rng(0)
    with Store.open(shuffled.url) as store:
        worker = make_worker(shuffled, store, Registry.load(), lambda event: None)
        worker.player.order = lambda count: generator.permutation(count).tolist()
        worker.run()
    assert digest(shuffled.url) == digest(finished.url)


def test_two_workers_share_the_matrix(finished: MatrixRun, tmp_path: Path) -> None:
    shared = matrix_run(tmp_path / "bench.db", workers=2)
    assert shared.run() == 0
    assert digest(shared.url) == digest(finished.url)
    owners = {row.owner for row in rows(shared.url) if row.state is CellState.DONE}
    assert len(owners) == 2


def test_without_a_number_the_run_says_how_many_workers_it_starts(
    finished: MatrixRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Right: the root of one worker, and one line with the number and its reason."""
    monkeypatch.setattr("bench.evaluation.worker_count.CELLS_OF_A_WORKER", 2)
    monkeypatch.setattr("bench.evaluation.worker_count.usable_cores", lambda: 2)
    shared = replace(matrix_run(tmp_path / "bench.db"), workers=None, quiet=False)
    assert shared.run() == 0
    assert digest(shared.url) == digest(finished.url)
    printed = capsys.readouterr().err
    assert "2 workers: one for each of 2 cores (--workers overrules)." in printed
    assert len({row.owner for row in rows(shared.url) if row.state is CellState.DONE}) == 2


def test_an_interrupted_run_resumes_in_the_middle_of_a_cell(
    finished: MatrixRun, tmp_path: Path
) -> None:
    stopped = matrix_run(tmp_path / "bench.db")
    interrupted: list[str] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, ChunkRecorded) and event.items < event.cell.items:
            interrupted.append(event.cell.key)
            raise KeyboardInterrupt

    with Store.open(stopped.url) as store:
        with pytest.raises(KeyboardInterrupt):
            make_worker(stopped, store, Registry.load(), interrupt).run()
        (row,) = [row for row in store.cells() if row.key == interrupted[0]]
        assert row.state is CellState.MISSING and 0 < row.items_done < row.cell.items
    assert stopped.run() == 0
    assert digest(stopped.url) == digest(finished.url)


def command(url: str | None) -> list[str]:
    words = [sys.executable, "-m", "bench.cli", "run", "--db", str(url), "--examples", "128"]
    for option, names in (
        ("--threat", SELECTION.threats),
        ("--defense", SELECTION.defenses),
        ("--attack", SELECTION.attacks),
    ):
        words += [word for name in names for word in (option, name)]
    return words


def start(url: str | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(url), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_two_runs_on_one_database_evaluate_each_cell_once(
    finished: MatrixRun, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/bench.db"
    both = [start(url), start(url)]
    errors = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert digest(url) == digest(finished.url)
    done = [line for text in errors for line in text.splitlines() if ": robust " in line]
    cells = [line.split("] ", 1)[1] for line in done]
    assert len(cells) == len(set(cells)) == len(rows(url)) - 1  # one is not applicable


def run_and_send(url: str, events: Connection) -> None:
    """A whole run in a process that will be killed; sends the name of each event."""
    with Store.open(url) as store:
        send = lambda event: events.send(type(event).__name__)  # noqa: E731
        make_worker(MatrixRun(SELECTION, url), store, Registry.load(), send).run()


def killed_after(count: int, delay: float, url: str) -> None:
    """Start a run and kill -9 it after `count` events and `delay` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.evaluation.test_launcher"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_and_send, args=(url, theirs))
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):
        for _ in range(count):
            assert ours.poll(60), "no event within a minute"
            ours.recv()
    time.sleep(delay)
    process.kill()
    process.join()


@pytest.mark.slow
def test_twenty_kills_lose_no_outcome_and_change_none(finished: MatrixRun, tmp_path: Path) -> None:
    """kill -9 at random moments: every recorded outcome is still there, unchanged."""
    url = f"sqlite:///{tmp_path}/bench.db"
    generator = random.Random(0)
    seen: dict[str, Outcomes] = {}
    for _ in range(KILLS):
        killed_after(generator.randint(2, 5), generator.random() / 10, url)
        with Store.open(url) as store:
            found = {row.key: store.outcomes(row.key) for row in store.cells()}
        for key, before in seen.items():
            rows_kept = np.isin(found[key].item, before.item)
            for name, old in before._asdict().items():
                assert np.array_equal(old, getattr(found[key], name)[rows_kept]), name
        seen = found
    assert sum(len(outcomes.item) for outcomes in seen.values()) > 128
    assert matrix_run(tmp_path / "bench.db").run() == 0
    assert digest(url) == digest(finished.url)


def test_a_finished_matrix_is_not_evaluated_again(finished: MatrixRun) -> None:
    before = {row.key: row.updated for row in rows(finished.url)}
    assert finished.run() == 0
    assert {row.key: row.updated for row in rows(finished.url)} == before


def test_a_finished_cell_can_be_reproduced(finished: MatrixRun) -> None:
    for attack, defense in (
        ("pgd", "undefended"),
        ("transfer", "linear"),
        ("pgd", "gaussian-noise"),
    ):
        (row,) = [
            r for r in rows(finished.url) if (r.cell.attack, r.cell.defense) == (attack, defense)
        ]
        result = reproduce(row.key[:16], finished.url, "cpu", allow_unsandboxed=False)
        assert result["same"], result["sentence"]
    with pytest.raises(BenchError, match="'zz' is no beginning of a cell's key"):
        reproduce("zz", finished.url, "cpu", allow_unsandboxed=False)


def test_the_plan_shows_why_an_attack_does_not_apply(finished: MatrixRun) -> None:
    plan = {(row["attack"], row["defense"]): row for row in finished.plan()}
    assert len(plan) == 20
    assert plan["transfer", "undefended"]["state"] == "not applicable"
    assert "its own surrogate" in plan["transfer", "undefended"]["reason"]
    assert plan["pgd", "linear"]["state"] == "done"


@pytest.mark.parametrize(
    ("certify", "expected"),
    [("none", set()), ("quick", {"intervals"}), ("all", {"intervals", "dual-bound"})],
)
def test_only_the_selected_certifiers_run(certify: str, expected: set[str], tmp_path: Path) -> None:
    only = replace(SELECTION, defenses=("linear",), attacks=("fgsm",), examples=32)
    alone = replace(matrix_run(tmp_path / "bench.db", selection=only), certify=certify)
    assert alone.run() == 0
    with Store.open(alone.url, read_only=True) as store:
        (row, *_) = [row for row in store.cells("digits-linf") if row.cell.attack == "fgsm"]
        names = {
            proof.certifier for proof in store.certificates(row.cell.threat_id, row.cell.examples)
        }
    assert names & {"intervals", "dual-bound"} == expected


@pytest.mark.parametrize(
    ("option", "value"), [("numeric", "half"), ("certify", "some"), ("keep_images", "few")]
)
def test_an_unknown_value_of_an_option_is_an_error(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(
        BenchError, match=f"--{option.replace('_', '-')} came as '{value}'; use one"
    ):
        replace(matrix_run(tmp_path / "bench.db"), **{option: value})  # type: ignore[arg-type]


def test_margin_pgd_breaks_exactly_what_the_exact_certificate_leaves_open(tmp_path: Path) -> None:
    only = replace(SELECTION, defenses=("linear",), attacks=("pgd", "pgd-margin"))
    alone = matrix_run(tmp_path / "bench.db", selection=only)
    assert alone.run() == 0
    with Store.open(alone.url, read_only=True) as store:
        cells = {row.cell.attack: row for row in store.cells("digits-linf")}
        known = store.certificates(cells["pgd"].cell.threat_id, cells["pgd"].cell.examples)
        proof = next(proof for proof in known if proof.certifier == "linear-exact")
        robust = store.outcomes(cells["pgd-margin"].key).verdict != 1
        other = store.outcomes(cells["pgd"].key).verdict != 1
    assert proof.exact and np.array_equal(robust, proof.certified)
    assert {"intervals", "lipschitz-margin"} <= {found.certifier for found in known}
    for found in known:
        assert not (found.certified & ~(robust & other)).any(), found.certifier


@pytest.mark.parametrize("attack", ["pgd", "foolbox-fmn-linf"])
def test_a_lease_is_extended_while_no_outcome_can_be_recorded_yet(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attack.startswith("foolbox"):
        pytest.importorskip("foolbox", reason="the extra `peers` is not installed")
    calls: list[str] = []
    for name in ("heartbeat", "record"):
        whole = getattr(Store, name)

        def recorded(store: Store, *rest: Any, name: str = name, whole: Any = whole) -> None:
            calls.append(name)
            whole(store, *rest)

        monkeypatch.setattr(Store, name, recorded)
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.0)
    one = replace(SELECTION, defenses=("gaussian-noise",), attacks=(attack,), examples=64)
    assert matrix_run(tmp_path / "bench.db", selection=one).run() == 0
    # The clean pass is recorded at once, then the only group of the cell.
    assert calls[0] == "record" == calls[-1] and calls.count("record") == 2
    assert calls.count("heartbeat") >= 40 / 4


def test_a_lease_is_extended_during_a_clean_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four groups of the defense, and four of the surrogate model."""
    calls: list[str] = []
    for owner, name, word in ((FreshModel, "_group", "group"), (Store, "heartbeat", "beat")):
        whole = getattr(owner, name)

        def recorded(*rest: Any, word: str = word, whole: Any = whole) -> Any:
            calls.append(word)
            return whole(*rest)

        monkeypatch.setattr(owner, name, recorded)
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.0)
    one = replace(SELECTION, defenses=("linear",), attacks=("transfer",), examples=256)
    assert matrix_run(tmp_path / "bench.db", selection=one).run() == 0
    assert " ".join(calls).startswith("group beat group beat group beat group")
    assert " ".join(calls).count("group beat group beat group beat group") >= 2


def test_while_another_worker_trains_a_defense_the_other_defenses_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("cnn-dropout", "linear")
    one = replace(SELECTION, defenses=names, attacks=("fgsm",), examples=32)
    here = matrix_run(tmp_path / "bench.db", selection=one)
    order: list[tuple[str, str]] = []
    waiting = ("waiting", "cnn-dropout")
    with Store.open(here.url) as store:
        registry = Registry.load()
        with pytest.raises(NeedsTraining) as need:
            DefenseBuilder(
                registry, "cnn-dropout", registry.find("dataset", "digits").value
            ).complete()
        other = store.lease_task(training_task(need.value.recipe), "17@another-host#12345")
        assert other is not None

        def listen(event: Event) -> None:
            if isinstance(event, TrainingElsewhere):
                if order.count(waiting) == 1:
                    store.release(other)
                order.append(waiting)
            if isinstance(event, CellFinished):
                order.append(("finished", event.cell.defense))

        make_worker(here, store, registry, listen).run()
        assert {row.state for row in store.cells()} == {CellState.DONE}
    # Postponed at first; waited for when nothing else was left.
    finished = [("finished", "linear"), ("finished", "cnn-dropout")]
    assert order == [waiting, finished[0], waiting, finished[1]]

"""Whole runs: the same board whatever batch, order, workers or kill."""

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
from bench.evaluation.events import Event
from bench.evaluation.launcher import MatrixRun, make_worker
from bench.evaluation.plan import Selection
from bench.evaluation.reproduce import reproduce
from bench.referee.fresh_model import FreshModel
from bench.registry.registry import Registry
from bench.results import json_report
from bench.store import CellRow, Store, leases
from bench.training.defense_builder import DefenseBuilder, NeedsTraining

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
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(SUBMISSIONS))


def matrix_run(path: Path, **changes: object) -> MatrixRun:
    return replace(MatrixRun(SELECTION, f"sqlite:///{path}", quiet=True), **changes)  # type: ignore[arg-type]


def digest(url: str | None) -> str:
    with Store.open(url, read_only=True) as store:
        assert store.check() == []
        report = json_report.json_report(store, "digits-linf")
    played = [s for s in report["matrix"] if s["attack"] in SELECTION.attacks]
    assert {square["state"] for square in played} == {"done", "not applicable"}
    return str(report["digest"])


def rows(url: str | None) -> list[CellRow]:
    with Store.open(url, read_only=True) as store:
        return [row for row in store.cells() if row.cell.attack != CLEAN]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> MatrixRun:
    """The mini matrix, played once at batch 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_SUBMISSIONS", str(SUBMISSIONS))
        whole = matrix_run(tmp_path_factory.mktemp("whole") / "bench.db", batch=64)
        assert whole.run() == 0
    return whole


@pytest.mark.parametrize("batch", [7, 32, 512])
def test_the_batch_changes_no_verdict(played: MatrixRun, tmp_path: Path, batch: int) -> None:
    other = matrix_run(tmp_path / "bench.db", batch=batch)
    assert other.run() == 0
    assert digest(other.url) == digest(played.url)


def test_the_order_changes_no_verdict(played: MatrixRun, tmp_path: Path) -> None:
    shuffled = matrix_run(tmp_path / "bench.db")
    generator = np.random.default_rng(0)
    with Store.open(shuffled.url) as store:
        hand = make_worker(shuffled, store, Registry.load(), lambda event: None)
        hand.order = lambda count: generator.permutation(count).tolist()
        hand.run()
    assert digest(shuffled.url) == digest(played.url)


def test_two_workers_share_the_matrix(played: MatrixRun, tmp_path: Path) -> None:
    shared = matrix_run(tmp_path / "bench.db", workers=2)
    assert shared.run() == 0
    assert digest(shared.url) == digest(played.url)
    owners = {row.owner for row in rows(shared.url) if row.state is CellState.DONE}
    assert len(owners) == 2


def test_an_interrupted_run_goes_on_in_the_middle_of_a_cell(
    played: MatrixRun, tmp_path: Path
) -> None:
    stopped = matrix_run(tmp_path / "bench.db")
    halves: list[str] = []

    def interrupt(event: Event) -> None:
        if event.kind == "chunk" and event.cell is not None and event.items < event.cell.items:
            halves.append(event.cell.key)
            raise KeyboardInterrupt

    with Store.open(stopped.url) as store:
        with pytest.raises(KeyboardInterrupt):
            make_worker(stopped, store, Registry.load(), interrupt).run()
        (row,) = [row for row in store.cells() if row.key == halves[0]]
        assert row.state is CellState.MISSING and 0 < row.items_done < row.cell.items
    assert stopped.run() == 0
    assert digest(stopped.url) == digest(played.url)


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
def test_two_runs_on_one_database_play_each_cell_once(played: MatrixRun, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/bench.db"
    both = [start(url), start(url)]
    errors = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert digest(url) == digest(played.url)
    done = [line for text in errors for line in text.splitlines() if ": held " in line]
    cells = [line.split("] ", 1)[1] for line in done]
    assert len(cells) == len(set(cells)) == len(rows(url)) - 1  # one is not applicable


def play(url: str, listener: Connection) -> None:
    """A whole run, in a process that somebody will kill."""
    with Store.open(url) as store:
        tell = lambda event: listener.send(event.kind)  # noqa: E731
        make_worker(MatrixRun(SELECTION, url), store, Registry.load(), tell).run()


def killed_after(count: int, delay: float, url: str) -> None:
    """Start a run and kill -9 it, so many events and seconds later."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.evaluation.test_launcher"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=play, args=(url, theirs))
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):
        for _ in range(count):
            assert ours.poll(60), "the run stands still"
            ours.recv()
    time.sleep(delay)
    process.kill()
    process.join()


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_play_nothing_twice(
    played: MatrixRun, tmp_path: Path
) -> None:
    """kill -9 at random moments; every outcome that was there before is there after, unchanged."""
    url = f"sqlite:///{tmp_path}/bench.db"
    dice = random.Random(0)
    seen: dict[str, Outcomes] = {}
    for _ in range(KILLS):
        killed_after(dice.randint(2, 5), dice.random() / 10, url)
        with Store.open(url) as store:
            found = {row.key: store.outcomes(row.key) for row in store.cells()}
        for key, before in seen.items():
            rows_kept = np.isin(found[key].item, before.item)
            for name, old in before._asdict().items():
                assert np.array_equal(old, getattr(found[key], name)[rows_kept]), name
        seen = found
    assert sum(len(outcomes.item) for outcomes in seen.values()) > 128
    assert matrix_run(tmp_path / "bench.db").run() == 0
    assert digest(url) == digest(played.url)


def test_a_finished_matrix_is_not_played_again(played: MatrixRun) -> None:
    before = {row.key: row.updated for row in rows(played.url)}
    assert played.run() == 0
    assert {row.key: row.updated for row in rows(played.url)} == before


def test_a_finished_cell_can_be_reproduced(played: MatrixRun) -> None:
    for attack, defense in (
        ("pgd", "undefended"),
        ("transfer", "linear"),
        ("pgd", "gaussian-noise"),
    ):
        (row,) = [
            r for r in rows(played.url) if (r.cell.attack, r.cell.defense) == (attack, defense)
        ]
        result = reproduce(row.key[:16], played.url, "cpu", allow_unsandboxed=False)
        assert result["same"], result["sentence"]
    with pytest.raises(BenchError, match="0 finished cells have a key that begins with 'zz'"):
        reproduce("zz", played.url, "cpu", allow_unsandboxed=False)


def test_the_plan_tells_why_a_pair_may_not_meet(played: MatrixRun) -> None:
    plan = {(row["attack"], row["defense"]): row for row in played.plan()}
    assert len(plan) == 20
    assert plan["transfer", "undefended"]["state"] == "not applicable"
    assert "its own surrogate" in plan["transfer", "undefended"]["reason"]
    assert plan["pgd", "linear"]["state"] == "done"


@pytest.mark.parametrize(
    ("asked", "who"),
    [("none", set()), ("quick", {"intervals"}), ("all", {"intervals", "dual-bound"})],
)
def test_only_the_certifiers_that_were_asked_for_prove(
    asked: str, who: set[str], tmp_path: Path
) -> None:
    only = replace(SELECTION, defenses=("linear",), attacks=("fgsm",), examples=32)
    alone = replace(matrix_run(tmp_path / "bench.db", selection=only), certify=asked)
    assert alone.run() == 0
    with Store.open(alone.url, read_only=True) as store:
        (row, *_) = [row for row in store.cells("digits-linf") if row.cell.attack == "fgsm"]
        names = {
            proof.certifier for proof in store.certificates(row.cell.threat_id, row.cell.examples)
        }
    assert names & {"intervals", "dual-bound"} == who


@pytest.mark.parametrize(
    ("option", "came"), [("numeric", "half"), ("certify", "some"), ("keep_images", "few")]
)
def test_an_unknown_choice_is_one_sentence(option: str, came: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"--{option.replace('_', '-')} came as '{came}'; use one"):
        replace(matrix_run(tmp_path / "bench.db"), **{option: came})  # type: ignore[arg-type]


def test_the_certificate_is_exact_and_margin_pgd_reaches_it(tmp_path: Path) -> None:
    only = replace(SELECTION, defenses=("linear",), attacks=("pgd", "pgd-margin"))
    alone = matrix_run(tmp_path / "bench.db", selection=only)
    assert alone.run() == 0
    with Store.open(alone.url, read_only=True) as store:
        cells = {row.cell.attack: row for row in store.cells("digits-linf")}
        known = store.certificates(cells["pgd"].cell.threat_id, cells["pgd"].cell.examples)
        proof = next(proof for proof in known if proof.certifier == "linear-exact")
        held = store.outcomes(cells["pgd-margin"].key).verdict != 1
        other = store.outcomes(cells["pgd"].key).verdict != 1
    assert proof.exact and np.array_equal(held, proof.certified)
    assert {"intervals", "lipschitz-margin"} <= {found.certifier for found in known}
    for found in known:
        assert not (found.certified & ~(held & other)).any(), found.certifier


@pytest.mark.parametrize("attack", ["pgd", "foolbox-fmn-linf"])
def test_a_lease_lasts_while_nothing_can_be_committed_yet(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attack.startswith("foolbox"):
        pytest.importorskip("foolbox", reason="the extra `peers` is not installed")
    words: list[str] = []
    for name in ("heartbeat", "record"):
        whole = getattr(Store, name)

        def heard(store: Store, *rest: Any, name: str = name, whole: Any = whole) -> None:
            words.append(name)
            whole(store, *rest)

        monkeypatch.setattr(Store, name, heard)
    monkeypatch.setattr(leases, "BEAT", 0.0)
    one = replace(SELECTION, defenses=("gaussian-noise",), attacks=(attack,), examples=64)
    assert matrix_run(tmp_path / "bench.db", selection=one).run() == 0
    # The clean pass is committed at once, then the only group of the cell.
    assert words[0] == "record" == words[-1] and words.count("record") == 2
    assert words.count("heartbeat") >= 40 / 4


def test_a_lease_lasts_through_a_clean_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four groups of the defense's, and of the surrogate's that nobody has asked before."""
    words: list[str] = []
    for owner, name, word in ((FreshModel, "_group", "group"), (Store, "heartbeat", "beat")):
        whole = getattr(owner, name)

        def heard(*rest: Any, word: str = word, whole: Any = whole) -> Any:
            words.append(word)
            return whole(*rest)

        monkeypatch.setattr(owner, name, heard)
    monkeypatch.setattr(leases, "BEAT", 0.0)
    one = replace(SELECTION, defenses=("linear",), attacks=("transfer",), examples=256)
    assert matrix_run(tmp_path / "bench.db", selection=one).run() == 0
    assert " ".join(words).startswith("group beat group beat group beat group")
    assert " ".join(words).count("group beat group beat group beat group") >= 2


def test_whoever_finds_a_training_in_other_hands_plays_something_else_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("cnn-dropout", "linear")
    one = replace(SELECTION, defenses=names, attacks=("fgsm",), examples=32)
    here = matrix_run(tmp_path / "bench.db", selection=one)
    order: list[tuple[str, str]] = []
    with Store.open(here.url) as store:
        registry = Registry.load()
        with pytest.raises(NeedsTraining) as need:
            DefenseBuilder(
                registry, "cnn-dropout", registry.find("dataset", "digits").value
            ).complete()
        other = store.lease_task(f"train:{need.value.recipe}", "17@another-host#12345")
        assert other is not None

        def heard(event: Event) -> None:
            if event.kind == "wait" and order.count(("wait", "")) == 1:
                store.release(other)
            order.append((event.kind, event.cell.defense if event.cell else ""))

        make_worker(here, store, registry, heard).run()
        assert {row.state for row in store.cells()} == {CellState.DONE}
    played = [name for kind, name in order if kind == "done"]
    assert played == ["linear", "cnn-dropout"]
    # Asked once and put off; asked again when nothing else was left.
    assert order.index(("wait", "")) < order.index(("done", "linear"))
    assert order.count(("wait", "")) == 2

"""Rank mode: a cascade breaks the same examples as full mode, with fewer gradient evaluations."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes, Verdict
from bench.evaluation import cascade
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.events import ChunkRecorded, Event
from bench.evaluation.launcher import MatrixRun, make_worker
from bench.evaluation.plan import Selection
from bench.evaluation.reproduce import reproduce
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Access, StopRule
from bench.registry.registry import Registry
from bench.results import json_report
from bench.store import CellRow, Store
from plugins.attacks.bim import BIM
from plugins.attacks.pgd_l2step import UnsignedPGD

SUBMISSIONS = Path(__file__).parents[2] / "submissions"
ATTACKS = ("fgsm", "bim", "pgd", "random", "transfer", "pgd-l2step")
"""In the order of their cascade: the last two are not required."""
SELECTION = Selection(
    threats=("digits-linf",),
    defenses=("linear", "undefended", "gaussian-noise"),
    attacks=tuple(sorted(ATTACKS)),
    examples=96,
    mode="rank",
)


@pytest.fixture(autouse=True)
def repository_submissions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_SUBMISSIONS", str(SUBMISSIONS))


def matrix_run(folder: Path, **changes: Any) -> MatrixRun:
    return replace(MatrixRun(SELECTION, f"sqlite:///{folder / 'bench.db'}", quiet=True), **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> MatrixRun:
    """Both modes in one database, every adversarial image kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_SUBMISSIONS", str(SUBMISSIONS))
        rank = matrix_run(tmp_path_factory.mktemp("both"), batch=64, keep_images="all")
        full = replace(rank, selection=replace(SELECTION, mode="full"))
        assert full.run() == rank.run() == 0
    return rank


def digest(url: str | None) -> str:
    with Store.open(url, read_only=True) as store:
        assert store.check() == []
        return str(json_report.json_report(store, "digits-linf", "rank")["digest"])


def cells(store: Store, mode: str) -> dict[tuple[str, str], CellRow]:
    rows = [row for row in store.cells(mode=mode) if row.cell.attack != CLEAN]
    return {(r.cell.defense, r.cell.attack): r for r in rows if r.state is CellState.DONE}


def broken(found: Outcomes) -> set[int]:
    return set(found.item[found.verdict == Verdict.BROKEN].tolist())


def pairs(url: str | None) -> Iterator[tuple[Store, CellRow, CellRow]]:
    """Each cell of the cascades with the cell of full mode."""
    with Store.open(url, read_only=True) as store:
        full, rank = cells(store, "full"), cells(store, "rank")
        assert set(full) == set(rank) and len(rank) == 17
        for pair, row in rank.items():
            yield store, row, full[pair]


def test_a_cascade_has_the_outcomes_and_images_of_full_mode(finished: MatrixRun) -> None:
    for store, rank, full in pairs(finished.url):
        mine, whole = store.outcomes(rank.key), store.outcomes(full.key)
        same = np.isin(whole.item, mine.item)
        for name in set(Outcomes._fields) - {"confidence"}:
            assert np.array_equal(getattr(mine, name), getattr(whole, name)[same]), name
        images, others = store.exact_images(rank.key), store.exact_images(full.key)
        if len(mine.item):
            assert images is not None and others is not None
            assert np.array_equal(images[1], others[1][np.isin(others[0], images[0])])


def test_the_same_examples_are_broken_in_both_modes_for_fewer_gradients(
    finished: MatrixRun,
) -> None:
    union: dict[tuple[str, str], set[int]] = {}
    spent = {"rank": 0, "full": 0}
    for store, rank, full in pairs(finished.url):
        for row in (rank, full):
            union.setdefault((row.cell.defense, row.cell.mode), set()).update(
                broken(store.outcomes(row.key))
            )
            spent[row.cell.mode] += row.figures.gradients if row.figures else 0
    for name in SELECTION.defenses:
        assert union[name, "rank"] == union[name, "full"]
    assert spent["rank"] < 0.5 * spent["full"], spent
    with Store.open(finished.url, read_only=True) as store:
        rows = [
            json_report.json_report(store, "digits-linf", mode)["ranking"]
            for mode in ("full", "rank")
        ]
    assert [r["robust"] for r in rows[0]] == [r["robust"] for r in rows[1]]
    assert [r["clean"] for r in rows[0]] == [r["clean"] for r in rows[1]]
    assert [r["robust_required"] for r in rows[0]] == [r["robust_required"] for r in rows[1]]


def test_each_cell_runs_on_exactly_the_examples_that_the_one_before_left_unbroken(
    finished: MatrixRun,
) -> None:
    with Store.open(finished.url, read_only=True) as store:
        rank = cells(store, "rank")
        for name in SELECTION.defenses:
            left, before = list(range(96)), ""
            for attack in (a for a in ATTACKS if (name, a) in rank):
                row = rank[name, attack]
                found = store.outcomes(row.key)
                assert (row.cell.before, row.cell.items) == (before, len(left))
                assert found.item.tolist() == left
                before, left = row.key, found.survivors()


def test_the_integrity_check_compares_a_cell_with_the_one_before(
    finished: MatrixRun, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    with Store.open(finished.url, read_only=True) as store:
        assert store.check() == []
        rank = cells(store, "rank")
        store.backup(copy)
    changed, other = rank["linear", "pgd"].key, rank["linear", "fgsm"].key
    for value, sentence in ((other, "other items than"), ("unknown", "missing or not done")):
        with closing(sqlite3.connect(copy)) as connection, connection:
            connection.execute("UPDATE cells SET before = ? WHERE key = ?", (value, changed))
        with Store.open(f"sqlite:///{copy}", read_only=True) as store:
            assert any(sentence in fault.text for fault in store.check())


@pytest.mark.parametrize(
    "changes", [{"batch": 7}, pytest.param({"workers": 2}, marks=pytest.mark.slow)]
)
def test_batch_and_workers_change_no_verdict(
    finished: MatrixRun, tmp_path: Path, changes: dict[str, int]
) -> None:
    other = matrix_run(tmp_path, **changes)
    assert other.run() == 0
    assert digest(other.url) == digest(finished.url)


def test_the_order_of_the_items_changes_no_verdict(finished: MatrixRun, tmp_path: Path) -> None:
    shuffled, generator = matrix_run(tmp_path), np.random.default_rng(0)
    with Store.open(shuffled.url) as store:
        worker = make_worker(shuffled, store, Registry.load(), lambda event: None)
        worker.player.order = lambda count: generator.permutation(count).tolist()
        worker.run()
    assert digest(shuffled.url) == digest(finished.url)


def test_a_run_that_is_interrupted_in_every_cell_gives_the_same_report(
    finished: MatrixRun, tmp_path: Path
) -> None:
    stopped = matrix_run(tmp_path)
    seen: set[str] = set()

    def interrupt(event: Event) -> None:
        """Stop in each cell, after its first chunk."""
        if isinstance(event, ChunkRecorded) and event.cell.key not in seen:
            seen.add(event.cell.key)
            raise KeyboardInterrupt

    for _ in range(20):
        try:
            with Store.open(stopped.url) as store:
                make_worker(stopped, store, Registry.load(), interrupt).run()
            break
        except KeyboardInterrupt:
            continue
    assert len(seen) == 17
    assert digest(stopped.url) == digest(finished.url)


def run_all(url: str) -> None:
    """A whole run in a process that will be killed."""
    with Store.open(url) as store:
        make_worker(MatrixRun(SELECTION, url), store, Registry.load(), lambda event: None).run()


@pytest.mark.slow
def test_kill_9_changes_no_report(finished: MatrixRun, tmp_path: Path) -> None:
    killed = matrix_run(tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.evaluation.test_cascade"])
    for delay in (2.0, 3.0, 4.5):
        process = context.Process(target=run_all, args=(killed.url,))
        process.start()
        process.join(delay)
        process.kill()
        process.join()
    assert killed.run() == 0
    assert digest(killed.url) == digest(finished.url)


def test_a_finished_cascade_is_not_evaluated_again(finished: MatrixRun) -> None:
    with Store.open(finished.url, read_only=True) as store:
        before = {row.key: row.updated for row in store.cells()}
    assert finished.run() == 0
    with Store.open(finished.url, read_only=True) as store:
        assert {row.key: row.updated for row in store.cells()} == before


def test_an_attack_that_fails_breaks_no_example_and_is_tried_again_by_the_next_run(
    finished: MatrixRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = matrix_run(tmp_path, selection=replace(SELECTION, defenses=("linear",)))
    whole = CellPlayer.chunks

    def chunks(self: CellPlayer, pair: Any, *rest: Any, **more: Any) -> Any:
        if pair.attack.name == "bim":
            raise ValueError("the attack failed")
        return whole(self, pair, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(CellPlayer, "chunks", chunks)
        assert one.run() == 1
    with Store.open(one.url, read_only=True) as store:
        rank = cells(store, "rank")
        assert rank["linear", "pgd"].cell.before == rank["linear", "fgsm"].key
    assert one.run() == 0
    with Store.open(finished.url, read_only=True) as store:
        wanted = {r["defense"]: r for r in json_report.json_report(store, None, "rank")["ranking"]}
    with Store.open(one.url, read_only=True) as store:
        assert store.check() == []
        (row,) = json_report.json_report(store, None, "rank")["ranking"]
    assert row["robust"] == wanted["linear"]["robust"]
    assert {line["state"] for line in one.plan()} == {"done"}


def test_an_attack_that_never_stops_early_runs_on_the_unbroken_examples_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnsignedPGD, "stop_rule", StopRule.NEVER, raising=False)
    names = ("fgsm", "pgd-l2step", "pgd")
    rank = matrix_run(tmp_path, selection=replace(SELECTION, defenses=("linear",), attacks=names))
    full = replace(rank, selection=replace(rank.selection, mode="full"))
    assert full.run() == rank.run() == 0
    with Store.open(rank.url, read_only=True) as store:
        union = [
            set[int]().union(
                *(broken(store.outcomes(row.key)) for row in cells(store, mode).values())
            )
            for mode in ("full", "rank")
        ]
    assert union[0] == union[1]


def test_the_two_modes_have_separate_reports(finished: MatrixRun, tmp_path: Path) -> None:
    with Store.open(finished.url, read_only=True) as store:
        full, rank = (json_report.json_report(store, None, mode) for mode in ("full", "rank"))
    assert (full["mode"], rank["mode"]) == ("full", "rank")
    assert {cell["robust"]["n"] for cell in full["matrix"] if cell["robust"]} == {96}
    counts = [cell["robust"]["n"] for cell in rank["matrix"] if cell["robust"]]
    assert max(counts) == 96 and min(counts) < 10
    assert {row["strongest"] for row in rank["ranking"]} == {None}
    only = matrix_run(tmp_path, selection=replace(SELECTION, defenses=("linear",)))
    assert only.run() == 0
    with (
        Store.open(only.url, read_only=True) as store,
        pytest.raises(BenchError, match="in rank mode alone; add --mode rank"),
    ):
        json_report.json_report(store)
    full_plan = replace(only, selection=replace(only.selection, mode="full")).plan()
    assert {line["state"] for line in full_plan} == {"missing"}


def test_a_cell_of_a_cascade_can_be_reproduced(finished: MatrixRun) -> None:
    with Store.open(finished.url, read_only=True) as store:
        rank = cells(store, "rank")
    for pair in (("linear", "bim"), ("gaussian-noise", "pgd")):
        result = reproduce(rank[pair].key[:16], finished.url, "cpu", allow_unsandboxed=False)
        assert result["same"], result["sentence"]


def test_a_threat_model_of_nearest_examples_has_no_rank_mode(tmp_path: Path) -> None:
    named = matrix_run(tmp_path, selection=replace(SELECTION, threats=("digits-nearest",)))
    with pytest.raises(BenchError, match="digits-nearest keeps the nearest adversarial example"):
        named.plan()
    default = matrix_run(tmp_path, selection=replace(SELECTION, threats=("all",), attacks=("pgd",)))
    threats = {row["threat"] for row in default.plan()}
    assert "digits-linf" in threats and "digits-nearest" not in threats


class UnlistedAttack:
    """An attack that no table of the cascade lists."""

    def __init__(self, name: str, needs: Access, steps: int, runs: int = 1) -> None:
        self.name, self.needs, self.steps, self._runs = name, needs, steps, runs

    def restart_count(self, classes: int) -> int:
        return self._runs

    def start(self, problem: Any) -> torch.Tensor:
        raise NotImplementedError

    step = start


def test_gradient_attacks_come_first_then_the_cheapest() -> None:
    known = [registration.value for registration in Registry.load().attacks.values()]
    unlisted = [
        UnlistedAttack("long", Access.GRADIENTS, 100),
        UnlistedAttack("runs", Access.GRADIENTS, 30, runs=3),
        UnlistedAttack("blind", Access.LABELS, 1),
    ]
    names = [attack.name for attack in cascade.in_cascade_order([*unlisted, *known], 10)]  # type: ignore[list-item]
    assert names[0] == "fgsm"
    assert names == [a.name for a in cascade.in_cascade_order([*known[::-1], *unlisted], 10)]  # type: ignore[list-item]
    last = max(names.index(name) for name in cascade.GRADIENT_ATTACKS if name in names)
    assert last < names.index("runs") < names.index("long")
    assert names.index("long") < names.index("random") < names.index("blind")
    required = ("fgsm", "bim", "pgd", "random")
    names = [attack.name for attack in cascade.in_cascade_order(known, 10, required)]
    assert names[:4] == list(required)
    assert [name for name in names if name in ATTACKS] == list(ATTACKS)


class FirstTen(BIM):
    """BIM on the first ten examples only."""

    examples = 10


def test_what_a_limited_attack_leaves_out_meets_the_next_one(tmp_path: Path) -> None:
    """The attack after it runs on all examples that the one before it left."""
    registry = Registry.load(tmp_path / "no submissions")
    limited = replace(registry.attacks["bim"], value=FirstTen())
    registry.attacks["bim"] = limited
    selection = replace(SELECTION, defenses=("linear",), attacks=("fgsm", "bim", "pgd"))
    settings = RunSettings(torch.device("cpu"), 32)
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        MatrixWorker(registry, store, selection, settings, certifiers="none").run()
        rows = {row.cell.attack: row for row in store.cells()}
        left = store.outcomes(rows["fgsm"].key).survivors()
        first = [item for item in left if item < 10]
        assert store.outcomes(rows["bim"].key).item.tolist() == first
        assert (rows["bim"].cell.items, rows["bim"].cell.before) == (len(first), rows["fgsm"].key)
        assert store.outcomes(rows["pgd"].key).item.tolist() == left
        assert rows["pgd"].cell.before == rows["fgsm"].key
        run = cascade.cascade_as_run(rows.values(), ("fgsm", "bim", "pgd"), {"bim"})
        assert list(run) == ["fgsm", "bim", "pgd"]

"""The worker: a failure stays in its cell, and cells of other workers are waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
from sqlalchemy import update
from torch import Tensor, nn

from bench.core.cells import CLEAN, CellState, Culprit
from bench.core.outcomes import Outcomes
from bench.engine.external_model import AttackStopped
from bench.evaluation import plan
from bench.evaluation import worker as worker_module
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_task import CellTask
from bench.evaluation.events import CellsElsewhere, ChunkRecorded, Event, LeaseLost
from bench.evaluation.launcher import MatrixRun, run_worker_process
from bench.evaluation.plan import Selection
from bench.evaluation.stopping import OwnLevel
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Access, Defense, Evidence, Loader, Problem
from bench.referee.referee import clean_outcomes
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.results.current_cells import current_cells
from bench.store import CellRow, Lease, LeaseLostError, PlannedCell, Store
from bench.store.tables import CELLS
from bench.store.waiting import Reminder
from tests.store.chunks import AWAY

SELECTION = Selection(("digits-linf",), ("linear",), ("random", "fgsm"), examples=32)
DONE, FAILED = CellState.DONE, CellState.FAILED
THIRD = "18@third-host#12345"
"""A worker on another host, whose process cannot be looked up here."""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path / "no submissions")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def make(registry: Registry, store: Store, **changes: Any) -> MatrixWorker:
    settings = RunSettings(torch.device("cpu"), 32)
    options = {"selection": SELECTION, "certifiers": "none", **changes}
    return MatrixWorker(registry, store, settings=settings, **options)


class SometimesFailing(nn.Module):
    """A network that raises an error while `fails` is set."""

    fails = False
    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        """The first ten pixels."""
        SometimesFailing.calls += 1
        if SometimesFailing.fails:
            raise ValueError("failing as set")
        return images.flatten(1)[:, :10]


def sometimes_failing(loader: Loader) -> nn.Module:
    return SometimesFailing()


def unbuildable(loader: Loader) -> nn.Module:
    raise ValueError("no such layer")


class Calling:
    """A diagnostic and an attack that calls a function of the test."""

    name = "calling"
    needs = Access.LABELS
    steps = 1

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def examine(self, *_: Any) -> Evidence:
        """Call the function, then fail as a diagnostic."""
        self.function()
        raise KeyError("oops")

    def start(self, problem: Problem) -> Tensor:
        """The clean images."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Call the function; the iterate stays."""
        self.function()
        return adv


def registered(value: Any) -> Registration[Any]:
    return Registration(value, "entry-point", "tests", "0" * 64)


def take_over(store: Store, attack: str) -> Lease:
    """Let a lease run out and take the cell over from another host."""
    key = rows(store)[attack].key
    with store._engine.begin() as connection:
        connection.execute(update(CELLS).where(CELLS.c.key == key).values(lease_until=0.0))
    lease = store.lease(key, AWAY)
    assert lease is not None
    return lease


def rows(store: Store) -> dict[str, CellRow]:
    """Attack -> cell."""
    return {row.cell.attack: row for row in store.cells()}


def test_a_worker_evaluates_a_single_cell(registry: Registry, store: Store) -> None:
    worker = make(registry, store)
    pair = next(p for p in plan.plan_pairs(registry, SELECTION) if p.attack.name == "fgsm")
    built = worker.defenses.defense(pair.defense, pair.threat)
    cell = built.cell(pair.threat, pair.attack, "full", None)
    store.plan([PlannedCell(cell)])
    worker._evaluate_cell(CellTask(cell, pair, built))
    assert rows(store)["fgsm"].state is DONE


def test_a_clean_pass_that_fails_keeps_finished_results(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.defenses["sometimes-failing"] = registered(
        Defense("sometimes-failing", sometimes_failing)
    )
    selection = replace(SELECTION, defenses=("sometimes-failing",))
    make(registry, store, selection=selection).run()
    before = {row.key for row in current_cells(store)}
    assert len(before) == 3
    monkeypatch.setattr(SometimesFailing, "fails", True)
    make(registry, store, selection=replace(selection, examples=48)).run()
    assert before < {row.key for row in current_cells(store)}
    fresh = [row for row in store.cells() if row.key not in before]
    assert {row.state for row in fresh} == {FAILED} and len(fresh) == 3
    assert {row.culprit for row in fresh} == {Culprit.PLUGIN}
    assert len({row.reason for row in fresh}) == 1 and "failing as set" in fresh[0].reason
    monkeypatch.setattr(SometimesFailing, "fails", False)
    make(registry, store, selection=replace(selection, examples=48)).run()
    assert {row.state for row in store.cells()} == {DONE}


def test_a_clean_pass_that_another_worker_takes_over_fails_no_cell(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    others: list[Lease] = []

    def slow(*given: Any) -> Outcomes:
        others.append(take_over(store, CLEAN))
        return clean_outcomes(*given)

    monkeypatch.setattr(worker_module, "clean_outcomes", slow)
    make(registry, store, listener=events.append, owner=THIRD).run()
    found = rows(store)
    assert (found["random"].state, found["fgsm"].state) == (DONE, DONE)
    assert (found[CLEAN].state, found[CLEAN].owner) == (CellState.RUNNING, AWAY)
    assert any(isinstance(e, LeaseLost) and "is lost" in e.reason for e in events)
    assert not store.evidence(found[CLEAN].cell.defense_digest, found[CLEAN].cell.examples)


@pytest.mark.parametrize(
    "error",
    [LeaseLostError("gone"), AttackStopped(), GeneratorExit(), ValueError("half \udcff of one")],
)
def test_any_exception_of_a_plugin_fails_its_cell_alone(
    registry: Registry, store: Store, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    registry.attacks["calling"] = registered(Calling(fail))
    selection = replace(SELECTION, attacks=("calling", "fgsm"))
    make(registry, store, selection=selection).run()
    found = rows(store)
    assert (found["calling"].state, found["calling"].culprit) == (FAILED, Culprit.PLUGIN)
    assert found["fgsm"].state is DONE


def test_an_interrupt_queues_submissions_and_releases_the_cell(
    registry: Registry, store: Store
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    registry.attacks["calling"] = replace(registered(Calling(fail)), origin="submission")
    with pytest.raises(KeyboardInterrupt):
        make(registry, store, selection=replace(SELECTION, attacks=("calling",))).run()
    (submission,) = store.submissions()
    assert [step.state for step in submission.history] == ["running", "queued"]
    assert rows(store)["calling"].state is CellState.MISSING


def test_a_cell_that_another_worker_has_taken_over_is_not_failed_here(
    registry: Registry, store: Store
) -> None:
    others: list[Lease] = []

    def fail() -> None:
        if not others:
            others.append(take_over(store, "calling"))
            raise ValueError("failed")

    def listen(event: Event) -> None:
        if isinstance(event, LeaseLost):
            store.release(others[0])

    registry.attacks["calling"] = registered(Calling(fail))
    selection = replace(SELECTION, attacks=("calling",))
    make(registry, store, selection=selection, listener=listen, owner=THIRD).run()
    assert len(others) == 1 and rows(store)["calling"].state is DONE


@pytest.mark.parametrize("mode", ["full", "rank"])
def test_a_surrogate_that_cannot_be_built_fails_the_transfer_attack_alone(
    mode: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "load", lambda **_: registry)
    registry.defenses["unbuildable"] = registered(Defense("unbuildable", unbuildable))
    registry.defenses["sometimes-failing"] = registered(
        Defense("sometimes-failing", sometimes_failing, surrogate="unbuildable")
    )
    selection = replace(
        SELECTION, defenses=("sometimes-failing",), attacks=("fgsm", "transfer", "pgd"), mode=mode
    )
    matrix_run = MatrixRun(selection, f"sqlite:///{tmp_path / 'bench.db'}", quiet=True)
    assert matrix_run.run() == 1
    states = {line["attack"]: line["state"] for line in matrix_run.plan()}
    assert states == {"fgsm": "done", "transfer": "failed", "pgd": "done"}
    with Store.open(matrix_run.url, read_only=True) as store:
        assert "no such layer" in rows(store)["transfer"].reason
    registry.defenses["unbuildable"] = registered(Defense("unbuildable", sometimes_failing))
    assert matrix_run.run() == 0
    assert {line["state"] for line in matrix_run.plan()} == {"done"}


def test_a_waiting_worker_fails_open_cells_of_a_defense_that_cannot_be_built(
    registry: Registry, store: Store
) -> None:
    registry.defenses["unbuildable"] = registered(Defense("unbuildable", unbuildable))
    worker = make(registry, store, selection=replace(SELECTION, defenses=("linear", "unbuildable")))
    cells = worker.run()
    unbuilt = [cell for cell in cells if cell.defense == "unbuildable"]
    store.plan(PlannedCell(cell) for cell in unbuilt)  # as another run does meanwhile
    worker._wait_for_others(cells)
    found = {row.key: row for row in store.cells()}
    assert {found[cell.key].state for cell in unbuilt} == {FAILED}
    assert all("no such layer" in found[cell.key].reason for cell in unbuilt)


def test_no_cell_is_evaluated_under_an_outdated_key(registry: Registry, store: Store) -> None:
    worker = make(registry, store)
    (cell, _) = worker.run()
    older = replace(cell, defense_digest="other weights")
    store.plan([PlannedCell(older)])
    worker._wait_for_others([older])
    row = next(row for row in store.cells() if row.key == older.key)
    assert (row.state, row.items_done, row.culprit) == (FAILED, 0, Culprit.USER)
    assert row.reason.startswith("linear or its surrogate has changed since this cell was planned")


@pytest.mark.parametrize("mode", ["full", "rank"])
def test_a_failing_cell_is_tried_once_per_run_by_any_number_of_workers(
    mode: str, registry: Registry, store: Store
) -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("calling")
        raise ValueError("failed")

    registry.attacks["calling"] = registered(Calling(fail))
    selection = replace(SELECTION, attacks=("calling", "fgsm"), mode=mode)
    began = store.clock()
    for owner in ("one", "two", "three"):
        make(registry, store, selection=selection, owner=owner, run_began=began).run()
    assert len(calls) == 1 and rows(store)["calling"].state is FAILED
    make(registry, store, selection=selection).run()
    assert len(calls) == 2, "another run tries again"


def test_a_failing_clean_pass_is_tried_once_per_run(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threat models share it; the cells of both record its failure."""
    monkeypatch.setattr(SometimesFailing, "fails", True)
    monkeypatch.setattr(SometimesFailing, "calls", 0)
    registry.defenses["sometimes-failing"] = registered(
        Defense("sometimes-failing", sometimes_failing)
    )
    both = replace(SELECTION, threats=("digits-linf", "digits-l2"), defenses=("sometimes-failing",))
    make(registry, store, selection=replace(both, attacks=("random",))).run()
    assert SometimesFailing.calls == 1
    assert [row.state for row in store.cells()] == [FAILED] * 3


def test_a_waiting_worker_tells_for_whom_and_takes_over(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.evaluation.worker.Reminder", partial(Reminder, first=0.0))
    told: list[CellsElsewhere] = []

    def listen(event: Event) -> None:
        if isinstance(event, CellsElsewhere):
            told.append(event)
            take_over(store, "fgsm")
            store.release(Lease(rows(store)["fgsm"].key, AWAY, 2))

    make(registry, store, selection=replace(SELECTION, attacks=("random",))).run()
    worker = make(registry, store, listener=listen)
    pairs = plan.plan_pairs(registry, SELECTION)
    built = worker.defenses.defense(pairs[0].defense, pairs[0].threat)
    cells = [built.cell(pair.threat, pair.attack, "full", None) for pair in pairs]
    store.plan(PlannedCell(cell) for cell in cells)
    (key,) = [cell.key for cell in cells if cell.attack == "fgsm"]
    assert store.lease(key, AWAY) is not None
    worker.run()
    (event,) = told
    assert (event.cell.attack, event.more) == ("fgsm", 0)
    assert event.holder.startswith("process 17 on another-host (last heartbeat")
    assert rows(store)["fgsm"].state is DONE


@pytest.mark.parametrize(("ended", "largest"), [(0, 32), (1, 32), (2, 8)])
def test_a_cell_whose_attempts_ended_early_is_committed_in_smaller_groups(
    ended: int, largest: int, registry: Registry, store: Store
) -> None:
    sizes: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, ChunkRecorded):
            sizes.append(event.items)

    worker = make(registry, store, selection=replace(SELECTION, attacks=("fgsm",)), listener=listen)
    (pair,) = plan.plan_pairs(registry, worker.selection)
    cell = worker.defenses.defense(pair.defense, pair.threat).cell(
        pair.threat, pair.attack, "full", None
    )
    store.plan([PlannedCell(cell)])
    for _ in range(ended):
        assert store.lease(cell.key, AWAY) is not None
        with store._engine.begin() as connection:
            connection.execute(update(CELLS).values(lease_until=0.0))
    worker.run()
    assert rows(store)["fgsm"].state is DONE
    assert max(sizes) <= largest and sum(sizes) == 32
    assert len(sizes) >= 32 // largest


def test_worker_processes_of_a_run_share_its_start(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("calling")
        raise ValueError("failed")

    monkeypatch.setattr(Registry, "load", lambda **_: registry)
    registry.attacks["calling"] = registered(Calling(fail))
    selection = replace(SELECTION, attacks=("calling",))
    whole = MatrixRun(selection, f"sqlite:///{tmp_path / 'bench.db'}", quiet=True)
    events: Any = Queue()
    with Store.open(whole.url) as store:
        began = store.clock()
    for rank in range(2):
        run_worker_process(whole, rank, events, began, OwnLevel())
    assert len(calls) == 1

"""The worker: what fails stays where it failed, and whoever waits goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
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
from bench.evaluation import plan, worker
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.events import Event
from bench.evaluation.launcher import MatrixRun, run_member
from bench.evaluation.plan import Selection
from bench.evaluation.worker import CellTask, Worker
from bench.plugin import Access, Defense, Evidence, Loader, Problem
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.results.current_cells import current_cells
from bench.store import CellRow, Lease, LeaseLostError, PlannedCell, Store, leases
from bench.store.tables import CELLS, TASKS
from bench.training import tasks
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from tests.fixtures import small_defenses
from tests.store.chunks import AWAY

SELECTION = Selection(("digits-linf",), ("linear",), ("random", "fgsm"), examples=32)
DONE, FAILED = CellState.DONE, CellState.FAILED
THIRD = "18@third-host#12345"
"""A worker of whom nobody here sees whether it lives."""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path / "no submissions")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def hand(registry: Registry, store: Store, **changes: Any) -> Worker:
    setting = RunSettings(torch.device("cpu"), 32)
    return replace(Worker(registry, store, SELECTION, setting, certifiers="none"), **changes)


class Moody(nn.Module):
    """A network that answers, until somebody spoils its mood."""

    spoilt = False
    asked = 0

    def forward(self, images: Tensor) -> Tensor:
        """The first ten pixels."""
        Moody.asked += 1
        if Moody.spoilt:
            raise ValueError("not in the mood")
        return images.flatten(1)[:, :10]


def moody(loader: Loader) -> nn.Module:
    return Moody()


def unbuildable(loader: Loader) -> nn.Module:
    raise ValueError("no such layer")


class Hook:
    """A diagnostic and an attack that does what the test wants, when it is asked."""

    name = "hook"
    needs = Access.LABELS
    steps = 1

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def examine(self, *_: Any) -> Evidence:
        """What diagnostics are asked."""
        self.act()
        raise KeyError("oops")

    def start(self, problem: Problem) -> Tensor:
        """The clean images."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Nothing changes."""
        self.act()
        return adv


def offered(value: Any) -> Registration[Any]:
    return Registration(value, "entry-point", "tests", "0" * 64)


def taken_over(store: Store, attack: str) -> Lease:
    """The lease of a cell as another host takes it once the clock has run out."""
    key = rows(store)[attack].key
    with store._engine.begin() as connection:
        connection.execute(update(CELLS).where(CELLS.c.key == key).values(lease_until=0.0))
    lease = store.lease(key, AWAY)
    assert lease is not None
    return lease


def rows(store: Store) -> dict[str, CellRow]:
    """By attack."""
    return {row.cell.attack: row for row in store.cells()}


def test_a_worker_that_has_not_run_plays_a_single_cell(registry: Registry, store: Store) -> None:
    alone = hand(registry, store)
    pair = next(p for p in plan.plan_pairs(registry, SELECTION) if p.attack.name == "fgsm")
    arena, source = alone.builder.seats(pair)
    cell = arena.cell(pair.threat, pair.attack, "full", source)
    store.plan([PlannedCell(cell)])
    alone._cell(CellTask(cell, pair, arena, source))
    assert rows(store)["fgsm"].state is DONE


def test_a_diagnostic_that_fails_has_tested_nothing_and_spoils_nothing(
    registry: Registry, store: Store
) -> None:
    heard: list[Event] = []
    registry.diagnostics["hook"] = offered(Hook(lambda: None))
    hand(registry, store, listener=heard.append).run()
    assert {row.state for row in store.cells()} == {DONE}
    (said,) = [event.text for event in heard if event.kind == "odd"]
    assert said.startswith("hook tells nothing of linear. It failed: KeyError in test_worker.py")
    clean = rows(store)[CLEAN]
    notes = {
        note.diagnostic: note
        for note in store.evidence(clean.cell.defense_digest, clean.cell.examples)
    }
    assert set(notes) == set(registry.diagnostics)
    assert (notes["hook"].finding, notes["hook"].sentence in said) == ("not tested", True)
    assert {note.finding for name, note in notes.items() if name != "hook"} != {"not tested"}


def test_a_clean_pass_that_fails_takes_no_finished_result_away(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.defenses["moody"] = offered(Defense("moody", moody))
    asked = replace(SELECTION, defenses=("moody",))
    hand(registry, store, selection=asked).run()
    before = {row.key for row in current_cells(store)}
    assert len(before) == 3
    monkeypatch.setattr(Moody, "spoilt", True)
    hand(registry, store, selection=replace(asked, examples=48)).run()
    assert before < {row.key for row in current_cells(store)}
    fresh = [row for row in store.cells() if row.key not in before]
    assert {row.state for row in fresh} == {FAILED} and len(fresh) == 3
    assert {row.culprit for row in fresh} == {Culprit.PLUGIN}
    assert len({row.reason for row in fresh}) == 1 and "not in the mood" in fresh[0].reason
    monkeypatch.setattr(Moody, "spoilt", False)
    hand(registry, store, selection=replace(asked, examples=48)).run()
    assert {row.state for row in store.cells()} == {DONE}


def test_a_diagnostic_is_asked_again_when_its_code_has_changed_and_only_then(
    registry: Registry, store: Store
) -> None:
    asked: list[str] = []
    for source in ("0" * 64, "0" * 64, "1" * 64):
        tool = Hook(lambda source=source: asked.append(source))  # type: ignore[misc]
        registry.diagnostics["hook"] = replace(offered(tool), source=source)
        hand(registry, store).run()
    assert asked == ["0" * 64, "1" * 64], "the clean pass had long been made the third time"
    clean = rows(store)[CLEAN]
    notes = store.evidence(clean.cell.defense_digest, clean.cell.examples)
    assert [note.source for note in notes if note.diagnostic == "hook"] == ["1" * 64]


def test_a_clean_pass_that_another_has_taken_over_fails_nothing(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    others: list[Lease] = []
    judged = worker.clean_outcomes

    def slow(*whose: Any) -> Outcomes:
        others.append(taken_over(store, CLEAN))
        return judged(*whose)

    monkeypatch.setattr(worker, "clean_outcomes", slow)
    hand(registry, store, listener=heard.append, owner=THIRD).run()
    found = rows(store)
    assert (found["random"].state, found["fgsm"].state) == (DONE, DONE)
    assert (found[CLEAN].state, found[CLEAN].owner) == (CellState.RUNNING, AWAY)
    assert any(event.kind == "wait" and "is lost" in event.text for event in heard)
    assert not store.evidence(found[CLEAN].cell.defense_digest, found[CLEAN].cell.examples)


@pytest.mark.parametrize("error", [LeaseLostError("gone"), AttackStopped(), GeneratorExit()])
def test_whatever_a_plugin_raises_fails_its_cell_alone(
    registry: Registry, store: Store, error: BaseException
) -> None:
    def act() -> None:
        raise error

    registry.attacks["hook"] = offered(Hook(act))
    selection = replace(SELECTION, attacks=("hook", "fgsm"))
    hand(registry, store, selection=selection).run()
    found = rows(store)
    assert (found["hook"].state, found["hook"].culprit) == (FAILED, Culprit.PLUGIN)
    assert found["fgsm"].state is DONE


def test_an_interrupt_queues_what_was_submitted_and_gives_the_cell_back(
    registry: Registry, store: Store
) -> None:
    def act() -> None:
        raise KeyboardInterrupt

    registry.attacks["hook"] = replace(offered(Hook(act)), origin="submission")
    with pytest.raises(KeyboardInterrupt):
        hand(registry, store, selection=replace(SELECTION, attacks=("hook",))).run()
    (told,) = store.submissions()
    assert [step.state for step in told.history] == ["running", "queued"]
    assert rows(store)["hook"].state is CellState.MISSING


def test_a_cell_that_another_has_taken_over_is_not_failed_from_here(
    registry: Registry, store: Store
) -> None:
    others: list[Lease] = []

    def stumble() -> None:
        if not others:
            others.append(taken_over(store, "hook"))
            raise ValueError("stumbled")

    def heard(event: Event) -> None:
        if event.kind == "wait":
            store.release(others[0])

    registry.attacks["hook"] = offered(Hook(stumble))
    asked = replace(SELECTION, attacks=("hook",))
    hand(registry, store, selection=asked, listener=heard, owner=THIRD).run()
    assert len(others) == 1 and rows(store)["hook"].state is DONE


@pytest.mark.parametrize("mode", ["full", "rank"])
def test_a_twin_that_cannot_be_built_stops_the_transfer_alone(
    mode: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "load", lambda **_: registry)
    registry.defenses["torn"] = offered(Defense("torn", unbuildable))
    registry.defenses["moody"] = offered(Defense("moody", moody, surrogate="torn"))
    asked = replace(SELECTION, defenses=("moody",), attacks=("fgsm", "transfer", "pgd"), mode=mode)
    matrix_run = MatrixRun(asked, f"sqlite:///{tmp_path / 'bench.db'}", quiet=True)
    assert matrix_run.run() == 1
    states = {line["attack"]: line["state"] for line in matrix_run.plan()}
    assert states == {"fgsm": "done", "transfer": "failed", "pgd": "done"}
    with Store.open(matrix_run.url, read_only=True) as store:
        assert "no such layer" in rows(store)["transfer"].reason
    registry.defenses["torn"] = offered(Defense("torn", moody))
    assert matrix_run.run() == 0
    assert {line["state"] for line in matrix_run.plan()} == {"done"}


def test_a_training_that_another_has_taken_over_is_left_to_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(leases, "BEAT", 0.0)
    known = small_defenses.registry(small_defenses.defense("base", small_defenses.recipe(epochs=2)))
    with pytest.raises(NeedsTraining) as need:
        DefenseBuilder(known, "base", small_defenses.DIGITS).complete()
    others: list[Lease | None] = []

    def lose(_: str) -> None:
        if not others:
            with store._engine.begin() as connection:
                connection.execute(update(TASKS).values(lease_until=0.0))
            others.append(store.lease_task(f"train:{need.value.recipe}", AWAY))

    rest = (need.value, small_defenses.DIGITS, torch.device("cpu"), lose)
    assert not tasks.train_once(known, store, "me", *rest)
    assert others[0] is not None
    store.heartbeat(others[0])


def test_whoever_waits_closes_what_cannot_be_built_and_goes_on(
    registry: Registry, store: Store
) -> None:
    registry.defenses["torn"] = offered(Defense("torn", unbuildable))
    waiting = hand(registry, store, selection=replace(SELECTION, defenses=("linear", "torn")))
    cells = waiting.run()
    torn = [cell for cell in cells if cell.defense == "torn"]
    store.plan(PlannedCell(cell) for cell in torn)  # another run has come to it meanwhile
    waiting._wait_for_others(cells)
    found = {row.key: row for row in store.cells()}
    assert {found[cell.key].state for cell in torn} == {FAILED}
    assert all("no such layer" in found[cell.key].reason for cell in torn)


def test_nothing_is_played_under_a_key_that_is_no_longer_its_own(
    registry: Registry, store: Store
) -> None:
    waiting = hand(registry, store)
    (cell, _) = waiting.run()
    older = replace(cell, defense_digest="other weights")
    store.plan([PlannedCell(older)])
    waiting._wait_for_others([older])
    row = next(row for row in store.cells() if row.key == older.key)
    assert (row.state, row.items_done, row.culprit) == (FAILED, 0, Culprit.USER)
    assert row.reason.startswith("linear or its surrogate has changed since this cell was planned")


@pytest.mark.parametrize("mode", ["full", "rank"])
def test_what_fails_is_played_once_in_a_run_however_many_work_on_it(
    mode: str, registry: Registry, store: Store
) -> None:
    plays: list[str] = []

    def stumble() -> None:
        plays.append("hook")
        raise ValueError("stumbled")

    registry.attacks["hook"] = offered(Hook(stumble))
    asked = replace(SELECTION, attacks=("hook", "fgsm"), mode=mode)
    began = store.clock()
    for owner in ("one", "two", "three"):
        hand(registry, store, selection=asked, owner=owner, began=began).run()
    assert len(plays) == 1 and rows(store)["hook"].state is FAILED
    hand(registry, store, selection=asked).run()
    assert len(plays) == 2, "a run of its own tries again"


def test_a_clean_pass_that_fails_is_made_once_in_a_run(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two boards stand on it; both say why they have no figure."""
    monkeypatch.setattr(Moody, "spoilt", True)
    monkeypatch.setattr(Moody, "asked", 0)
    registry.defenses["moody"] = offered(Defense("moody", moody))
    boards = replace(SELECTION, threats=("digits-linf", "digits-l2"), defenses=("moody",))
    hand(registry, store, selection=replace(boards, attacks=("random",))).run()
    assert Moody.asked == 1
    assert [row.state for row in store.cells()] == [FAILED] * 3


def test_the_processes_of_a_campaign_are_one_run(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays: list[str] = []

    def stumble() -> None:
        plays.append("hook")
        raise ValueError("stumbled")

    monkeypatch.setattr(Registry, "load", lambda **_: registry)
    registry.attacks["hook"] = offered(Hook(stumble))
    asked = replace(SELECTION, attacks=("hook",))
    whole = MatrixRun(asked, f"sqlite:///{tmp_path / 'bench.db'}", quiet=True)
    events: Any = Queue()
    with Store.open(whole.url) as store:
        began = store.clock()
    for rank in range(2):
        run_member(whole, rank, events, began)
    assert len(plays) == 1

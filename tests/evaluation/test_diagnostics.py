"""Diagnostics: each runs once per version, and a failing one is recorded as not tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.cells import CLEAN, CellState
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.events import Event, RunNotice
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Evidence, Finding
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.store import CellRow, Store

SELECTION = Selection(("digits-linf",), ("linear",), ("random", "fgsm"), examples=32)
SETTINGS = RunSettings(torch.device("cpu"), 32)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path / "no submissions")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


class Failing:
    """A diagnostic that calls a function of the test and then fails."""

    name = "failing"

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def examine(self, *_: Any) -> Evidence:
        """Call the function and fail."""
        self.function()
        raise KeyError("oops")


def register(
    registry: Registry, function: Callable[[], None] = lambda: None, source: str = "0" * 64
) -> None:
    """Register the failing diagnostic under a source digest."""
    diagnostic: Any = Failing(function)
    registry.diagnostics["failing"] = Registration(diagnostic, "entry-point", "tests", source)


def run(registry: Registry, store: Store, **options: Any) -> CellRow:
    """Evaluate the selection; returns the cell of the clean pass."""
    MatrixWorker(registry, store, SELECTION, SETTINGS, certifiers="none", **options).run()
    return next(row for row in store.cells() if row.cell.attack == CLEAN)


def test_a_diagnostic_that_fails_is_not_tested_and_fails_no_cell(
    registry: Registry, store: Store
) -> None:
    events: list[Event] = []
    register(registry)
    clean = run(registry, store, listener=events.append)
    assert {row.state for row in store.cells()} == {CellState.DONE}
    (text,) = [event.text for event in events if isinstance(event, RunNotice)]
    start = "failing gives no finding for linear. It failed: KeyError in test_diagnostics.py"
    assert text.startswith(start)
    found = store.evidence(clean.cell.defense_digest, clean.cell.examples)
    evidence = {row.diagnostic: row for row in found}
    assert set(evidence) == set(registry.diagnostics)
    assert evidence["failing"].finding == "not tested"
    assert evidence["failing"].sentence in text
    assert {row.finding for name, row in evidence.items() if name != "failing"} != {"not tested"}


class Halved:
    """A diagnostic whose sentence holds half a character, as in the name of a file."""

    name = "halved"

    def examine(self, *_: Any) -> Evidence:
        """Pass."""
        return Evidence(Finding.PASSED, "it read \udcff.png.")


def test_a_sentence_that_no_database_can_hold_is_escaped(registry: Registry, store: Store) -> None:
    diagnostic: Any = Halved()
    registry.diagnostics.clear()
    registry.diagnostics["halved"] = Registration(diagnostic, "entry-point", "tests", "0" * 64)
    clean = run(registry, store)
    (found,) = store.evidence(clean.cell.defense_digest, clean.cell.examples)
    assert (found.finding, found.sentence) == ("clear", r"it read \udcff.png.")


def test_a_diagnostic_runs_again_only_when_its_code_has_changed(
    registry: Registry, store: Store
) -> None:
    calls: list[str] = []
    register(registry, lambda: calls.append("before"))
    for _ in range(2):
        run(registry, store)
    register(registry, lambda: calls.append("after"), "1" * 64)
    clean = run(registry, store)
    assert calls == ["before", "after"], "the clean pass was finished before the third run"
    evidence = store.evidence(clean.cell.defense_digest, clean.cell.examples)
    assert [row.source for row in evidence if row.diagnostic == "failing"] == ["1" * 64]

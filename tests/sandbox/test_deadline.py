"""Certifiers, diagnostics and a second evaluation end with the time of a cell."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.cells import CellState
from bench.core.errors import PluginError
from bench.data import datasets
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.certification import certificates_of
from bench.evaluation.diagnostics import evidence_of
from bench.evaluation.events import Event, RunNotice
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Evidence, Finding
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.sandbox import isolation
from bench.sandbox.deadline import CELL_DEADLINE
from bench.sandbox.isolation import Limits
from bench.store import Store
from bench.training.defense_builder import DefenseBuilder
from tests.sandbox.isolated import PLAIN, sandboxed, write_submission

needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
Call = Callable[[nn.Module, Tensor], object]


def loop(module: nn.Module, images: Tensor) -> object:
    """Compute without an end, without the model."""
    while True:
        images = images + 1


def loop_over_errors(module: nn.Module, images: Tensor) -> object:
    """Go on after every error but the fourth."""
    for _ in range(3):
        try:
            loop(module, images)
        except Exception:
            continue
    return loop(module, images)


def sleep(module: nn.Module, images: Tensor) -> object:
    """Wait in one system call."""
    time.sleep(3600)
    return None


def call_for_ever(module: nn.Module, images: Tensor) -> object:
    """Ask the model without an end."""
    while True:
        module(images[:1])


class Endless:
    """A certifier and diagnostic that never returns."""

    exact = False

    def __init__(self, work: Call) -> None:
        self.name, self.work = f"endless-{work.__name__}".replace("_", "-"), work

    def refuses(self, *_: Any) -> str:
        """It applies to every defense."""
        return ""

    def certify(self, module: nn.Module, x: Tensor, *_: Any) -> Any:
        """Never return."""
        return self.work(module, x)

    def examine(self, module: nn.Module, x: Tensor, *_: Any) -> Any:
        """Never return."""
        return self.work(module, x)


class Quick(Endless):
    """A certifier and diagnostic that returns at once."""

    def __init__(self) -> None:
        super().__init__(loop)
        self.name = "quick"

    def certify(self, module: nn.Module, x: Tensor, *_: Any) -> Any:
        """Certify nothing."""
        return torch.zeros(len(x), dtype=torch.bool)

    def examine(self, *_: Any) -> Any:
        """Find nothing."""
        return Evidence(Finding.PASSED, "Nothing.")


def evaluate(registry: Registry, defense: str, folder: Path, *tools: Any) -> tuple[str, Store]:
    """Evaluate a defense with these tools alone; what the run reports, and its database."""
    listed = {tool.name: Registration(tool, "entry-point", "tests", "0" * 64) for tool in tools}
    registry.certifiers.clear()
    registry.diagnostics.clear()
    registry.certifiers.update(listed)
    registry.diagnostics.update(listed)
    selection = Selection(("digits-linf",), (defense,), ("random",), examples=16)
    events: list[Event] = []
    store = Store.open(f"sqlite:///{folder / 'bench.db'}")
    settings = RunSettings(torch.device("cpu"), 16)
    MatrixWorker(registry, store, selection, settings, listener=events.append).run()
    assert {row.state for row in store.cells()} == {CellState.DONE}
    return " ".join(event.text for event in events if isinstance(event, RunNotice)), store


@needs_timer
def test_a_certifier_and_a_diagnostic_of_this_process_end_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "LIMITS", Limits(cell=0.2))
    monkeypatch.setattr("bench.sandbox.deadline.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("bench.sandbox.deadline.REPEAT_SECONDS", 0.1)
    endless = [Endless(work) for work in (loop, loop_over_errors, sleep, call_for_ever)]
    quick = Quick()
    handler = signal.getsignal(signal.SIGALRM)
    told, store = evaluate(Registry.load(tmp_path / "none"), "linear", tmp_path, *endless, quick)
    with store:
        (clean,) = [row.cell for row in store.cells() if row.cell.attack == "random"]
        found = {
            row.diagnostic: row for row in store.evidence(clean.defense_digest, clean.examples)
        }
        certified = store.certificates(clean.threat_id, clean.examples)
    for tool in endless:
        why = f"{tool.name} did not finish within 0.2 s: make it faster"
        assert f"{tool.name} gives no certificates for linear: {why}" in told
        assert f"{tool.name} gives no finding for linear. It failed: {why}" in told
        assert found[tool.name].finding == "not tested" and why in found[tool.name].sentence
    assert found[quick.name].finding == Finding.PASSED
    assert [row.certifier for row in certified] == [quick.name]
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.usefixtures("sandbox")
def test_tools_that_call_a_sandboxed_model_for_ever_end_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(tmp_path, PLAIN)
    registry, tool = sandboxed(tmp_path), Endless(call_for_ever)
    threat = registry.find("threat", "digits-linf").value
    dataset = registry.find("dataset", "digits").value
    builder = DefenseBuilder(registry, "mine", dataset)
    settings = RunSettings(torch.device("cpu"))
    built = BuiltDefense(builder, datasets.first_examples(dataset, 16), settings, 0)
    monkeypatch.setattr(isolation, "LIMITS", Limits(cell=0.5))
    monkeypatch.setattr("bench.sandbox.deadline.GRACE_SECONDS", 300.0)
    late = r"^submission mine did not finish its cell within 0\.5 s; its process was ended"
    with pytest.raises(PluginError, match=late):
        evidence_of(tool, built)
    with pytest.raises(PluginError, match=late):
        certificates_of(tool, built, threat)


def test_a_cell_inside_another_ends_with_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "LIMITS", Limits(cell=1000.0))
    with CELL_DEADLINE.cell():
        outer = CELL_DEADLINE.until
        monkeypatch.setattr(isolation, "LIMITS", Limits(cell=0.0))
        with CELL_DEADLINE.cell():
            assert CELL_DEADLINE.passed
        assert CELL_DEADLINE.until == outer and not CELL_DEADLINE.passed


@needs_timer
def test_a_timer_of_the_caller_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with CELL_DEADLINE.interrupting("quick"):
            pass
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@needs_timer
def test_an_error_of_the_code_itself_passes_through() -> None:
    with pytest.raises(PluginError, match="of its own"), CELL_DEADLINE.interrupting("failing"):
        raise PluginError("of its own")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

"""A run that a signal stops: its group is finished, its leases are released, it continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.core.cells import CellState
from bench.core.errors import UnavailableError
from bench.evaluation import stopping
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.plan import Selection
from bench.evaluation.stopping import StopRequest, stopped_by_parent, stopped_by_signals
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Access, Problem
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.store import Store

ROOT = Path(__file__).parents[2]
SELECTION = Selection(("digits-linf",), ("linear",), ("signalling", "fgsm"), examples=32)


@pytest.fixture(autouse=True)
def default_interrupt() -> Iterator[None]:
    """SIGINT interrupts, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Signalling:
    """An attack of three steps that calls a function of the test before its second one."""

    name = "signalling"
    needs = Access.LABELS
    steps = 3

    made = 0
    function: Callable[[], None]
    """Kept by the class, because what an instance holds is part of its digest."""

    def start(self, problem: Problem) -> Tensor:
        """The clean images."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Call the function; the iterate stays."""
        Signalling.made += 1
        if Signalling.made == 2:
            Signalling.function()
        return adv


def interrupted_run(
    tmp_path: Path, function: Callable[[], None], stop: StopRequest | None = None
) -> tuple[Store, Signalling]:
    """The database after a run in which `function` was called within a group."""
    registry = Registry.load(tmp_path / "no submissions")
    attack, Signalling.made, Signalling.function = Signalling(), 0, staticmethod(function)
    registry.attacks[attack.name] = Registration(attack, "entry-point", "tests", "0" * 64)
    store = Store.open(f"sqlite:///{tmp_path / 'bench.db'}")
    stop = stop or StopRequest()
    store.waiting.check_at_work = stop.raise_if_overdue
    settings = RunSettings(torch.device("cpu"), 32)
    worker = MatrixWorker(registry, store, SELECTION, settings, certifiers="none", stop=stop)
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(stop):
        worker.run()
    return store, attack


def states(store: Store) -> dict[str, CellState]:
    return {row.cell.attack: row.state for row in store.cells()}


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_the_first_signal_lets_a_run_finish_its_group(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    store, attack = interrupted_run(tmp_path, lambda: os.kill(os.getpid(), number))
    assert attack.made == 3
    assert states(store)["signalling"] is CellState.DONE
    assert states(store)["fgsm"] is CellState.MISSING
    assert "a second signal stops at once" in capfd.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("second", stopping.SIGNALS)
def test_the_second_signal_stops_at_once_and_releases_the_lease(
    second: signal.Signals, tmp_path: Path
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)

    store, attack = interrupted_run(tmp_path, twice)
    assert attack.made == 2
    assert states(store)["signalling"] is CellState.MISSING


def test_a_group_that_takes_too_long_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "STOP_SECONDS", 0.0)
    store, attack = interrupted_run(tmp_path, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert attack.made == 2
    assert states(store)["signalling"] is CellState.MISSING


def test_a_worker_stops_at_once_only_where_its_parent_says_so() -> None:
    stop = StopRequest()
    with stopped_by_parent(stop):
        for number in stopping.SIGNALS * 2:
            os.kill(os.getpid(), number)
        assert stop.level.value == 1
        stop.level.value = 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_worker_without_its_parent_stops() -> None:
    StopRequest(parent=os.getppid()).raise_if_overdue()
    with pytest.raises(KeyboardInterrupt):
        StopRequest(parent=os.getppid() + 1).raise_if_overdue()


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stopped_by_signals(stop):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_first_signal_that_a_worker_has_noticed_before_does_not_stop_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    stop = StopRequest()
    with stopped_by_signals(stop):
        stop.level.value = 1  # as `stopped_by_parent` does in a worker
        os.kill(os.getpid(), signal.SIGTERM)
        assert "The same command continues." in capfd.readouterr().err
        assert stop.level.value == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.level.value == 2


def started_run(url: str, *options: str) -> subprocess.Popen[str]:
    words = ["run", "--db", url, "--threat", "digits-linf", "--examples", "128"]
    for name in ("linear", "undefended", "bit-depth"):
        words += ["--defense", name]
    return subprocess.Popen(
        [sys.executable, "-m", "bench.cli", *words, *options], cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for_outcomes(url: str, process: subprocess.Popen[str]) -> None:
    """Wait until a run has recorded outcomes of an attack."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        # Before its tables are there a reader finds no database.
        with suppress(UnavailableError), Store.open(url, read_only=True) as store:
            if sum(row.items_done for row in store.cells()) > 300:
                return
        time.sleep(0.2)
    raise AssertionError("no outcome within two minutes")


def group_ends(pid: int, within: float = 20.0) -> bool:
    """Whether the last process of a group ends; workers may take a moment longer than their run."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "workers"),
    [(signal.SIGTERM, False, 2), (signal.SIGHUP, True, 2), (signal.SIGTERM, False, 1)],
)
def test_a_stopped_command_releases_its_leases_and_ends_its_workers(
    number: signal.Signals, group: bool, workers: int, tmp_path: Path
) -> None:
    """A service manager signals the whole group, an operator the command alone."""
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    process = started_run(url, "--workers", str(workers))
    wait_for_outcomes(url, process)
    (os.killpg if group else os.kill)(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "The same command continues." in told
    # A signal to the whole group may end the resource tracker of multiprocessing with a KeyError.
    assert "Traceback" not in told or (group and "resource_tracker.py" in told)
    assert group_ends(process.pid)
    with Store.open(url, read_only=True) as store:
        found = {row.state for row in store.cells()}
        assert CellState.RUNNING not in found and CellState.FAILED not in found
        assert store.check() == []

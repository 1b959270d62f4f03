"""Where the time of one evaluation cell goes: model, attack, projection, referee, database."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import BenchError
from bench.engine import external_run, model_access, scheduler, speculative
from bench.engine.model_access import ModelAccess
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.events import CellFailed, DefenseFailed, Event
from bench.evaluation.plan import PlannedPair, Selection
from bench.evaluation.worker import MatrixWorker
from bench.referee.referee import Referee
from bench.registry.registry import Registry
from bench.store import Store

FORWARD, BACKWARD = "model forward", "model backward"
STEP, PROJECTION = "attack step", "projection"
BUILD, CLEAN_PASS = "build and train", "clean pass"
REFEREE, STORE, REST = "referee", "store", "engine and rest"
PARTS = (BUILD, CLEAN_PASS, FORWARD, BACKWARD, STEP, PROJECTION, REFEREE, STORE, REST)
WHOLE_PARTS = (BUILD, CLEAN_PASS, REFEREE, STORE)
"""Parts to which everything that they call counts, forward passes of the model too."""


@dataclass(frozen=True)
class ProfilePart:
    """One part of the work on a cell."""

    name: str
    calls: int
    seconds: float
    """Wall-clock time in it, without the parts that it calls."""


@dataclass(frozen=True)
class CellProfile:
    """The time of one cell by part."""

    pair: PlannedPair
    examples: int
    parts: tuple[ProfilePart, ...]
    """In the order of PARTS; their seconds add up to `seconds`."""
    seconds: float


@dataclass
class PartTimer:
    """Adds up the time of nested parts; the time in an inner part counts there alone."""

    synchronise: Callable[[], None] = lambda: None
    """Waits until the device has done its work, which else would count to a later part."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    _open: list[str] = field(default_factory=lambda: [REST])
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context whose time counts to a part; within WHOLE_PARTS it counts to the outer one."""
        if self._open[-1] in WHOLE_PARTS:
            yield
            return
        self._count()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        """Add the time since the last count to the innermost open part."""
        self.synchronise()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def parts(self) -> tuple[ProfilePart, ...]:
        """All parts, up to now."""
        self._count()
        return tuple(ProfilePart(name, self.calls[name], self.seconds[name]) for name in PARTS)


def profile_cell(registry: Registry, selection: Selection, settings: RunSettings) -> CellProfile:
    """Evaluate the one cell of a selection in a temporary database and time its parts.

    Diagnostics and certifiers do not run. The outcomes are those of a run; the time includes what
    measuring costs.

    Args:
        registry: the plugins; its diagnostics are removed.
        selection: one threat model, defense and attack.
        settings: device, batch and arithmetic.

    Raises:
        BenchError: the selection names more, the attack does not apply, or the cell failed.
    """
    pair = plan.single_pair(registry, selection, "a profile")
    registry.diagnostics.clear()
    device = settings.device
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    failures: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, CellFailed | DefenseFailed):
            failures.append(event.reason)

    with (
        tempfile.TemporaryDirectory(prefix="gauntlet-") as folder,
        Store.open(str(Path(folder) / "profile.db")) as store,
    ):
        worker = MatrixWorker(
            registry, store, selection, settings, certifiers="none", listener=listen
        )
        timer = PartTimer(wait)
        with timed_parts(timer, type(pair.threat.ball)):
            worker.run()
            parts = timer.parts()
        items = sum(cell.cell.items for cell in store.cells() if cell.cell.threat)
    if failures:
        raise BenchError(failures[0])
    return CellProfile(pair, items, parts, sum(part.seconds for part in parts))


@contextmanager
def timed_parts(timer: PartTimer, perturbation_set: type) -> Iterator[None]:
    """A context in which the functions of each part are timed; they are as before afterwards."""
    places: Sequence[tuple[Any, str, str]] = (
        (DefenseCache, "defense", BUILD), (DefenseCache, "surrogate", BUILD),
        (BuiltDefense, "_compute_clean_pass", CLEAN_PASS),
        (ModelAccess, "_call", FORWARD),
        (model_access, "input_gradient", BACKWARD),
        (scheduler, "started", STEP), (scheduler, "stepped", STEP),
        (speculative, "stepped", STEP), (external_run, "_isolated", STEP),
        (perturbation_set, "project", PROJECTION),
        (Referee, "confirm", REFEREE), (Referee, "judge", REFEREE),
        *((Store, name, STORE) for name in ("read", "write", "record")),
    )  # fmt: skip
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(_timed(owner, name, timer, part))
        yield


@contextmanager
def _timed(owner: Any, name: str, timer: PartTimer, part: str) -> Iterator[None]:
    """A context in which the function `name` of a class or module counts to a part."""
    before = getattr(owner, name)
    own = name in vars(owner)

    @functools.wraps(before)
    def timed(*args: Any, **keywords: Any) -> Any:
        with timer.part(part):
            return before(*args, **keywords)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

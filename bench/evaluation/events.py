"""Events of a run, which a progress display or a test receives; they cross process boundaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from bench.core.cells import Cell
from bench.core.statistics import Count
from bench.engine.precision_audit import PrecisionAudit
from bench.evaluation.plan import PlannedPair


@dataclass(frozen=True)
class CellStarted:
    """A worker has leased a cell and starts to evaluate it."""

    cell: Cell
    items_done: int = 0
    """Items that an interrupted run has finished."""


@dataclass(frozen=True)
class ChunkRecorded:
    """Outcomes of some items of a cell have been recorded."""

    cell: Cell
    items: int


@dataclass(frozen=True)
class CellFinished:
    """All items of a cell have an outcome."""

    cell: Cell
    robust: Count
    """Items that the attack has not broken, of all items."""


@dataclass(frozen=True)
class CellFailed:
    """A cell has no figure because an error ended it."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class DefenseFailed:
    """No cell of a defense can be evaluated: it cannot be built, or its clean pass failed."""

    defense: str
    reason: str


@dataclass(frozen=True)
class TrainingProgress:
    """An epoch of a training has ended."""

    text: str


@dataclass(frozen=True)
class TrainingElsewhere:
    """Another worker trains a defense that this worker needs."""

    defense: str
    holder: str = ""
    """The process that trains it, and its last heartbeat."""


@dataclass(frozen=True)
class CellsElsewhere:
    """This worker has nothing else to do and waits for cells that other workers evaluate."""

    cell: Cell
    """One of them."""
    more: int
    """How many others there are."""
    since: str
    """The time when the wait began."""
    holder: str
    """The process that evaluates `cell`, and its last heartbeat."""


@dataclass(frozen=True)
class LeaseLost:
    """Another worker has taken over a cell."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class RunNotice:
    """Something a user should know that stops no cell."""

    text: str


@dataclass(frozen=True)
class PluginProblem:
    """A plugin or a submission that does not take part."""

    text: str


Event: TypeAlias = (
    CellStarted
    | ChunkRecorded
    | CellFinished
    | CellFailed
    | DefenseFailed
    | TrainingProgress
    | TrainingElsewhere
    | CellsElsewhere
    | LeaseLost
    | RunNotice
    | PluginProblem
)

Listener: TypeAlias = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Do nothing: the listener where no events are shown."""


def no_finite_logits(defense: str, count: int, of: int) -> RunNotice:
    """The notice that a defense has no finite logits for some clean images."""
    return RunNotice(
        f"{defense} gave no finite logits for {count} of {of} clean images; they count as "
        f"misclassified. `bench check {defense}` shows where."
    )


def refused_candidates(cell: Cell, count: int, largest: float) -> RunNotice:
    """The notice that the referee refused candidates; `largest` is the largest distance."""
    return RunNotice(
        f"{cell.attack} on {cell.threat}: {count} of {cell.items} images against {cell.defense} "
        f"left the perturbation set or [0, 1] (largest distance {largest:.4f}); they count as "
        "unbroken."
    )


def missed_in_low_precision(pair: PlannedPair, audit: PrecisionAudit) -> RunNotice:
    """The notice that the audit in float32 broke examples that low precision had not broken."""
    return RunNotice(
        f"{pair.attack.name} on {pair.threat.name}: {audit.broken} of {audit.sampled} sampled "
        f"examples of {pair.defense.name} that were robust in low precision are broken in float32; "
        f"all {audit.survivors} robust ones were evaluated again in float32."
    )

"""Events of a run that a listener may show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.core.cells import Cell
from bench.engine.precision_audit import PrecisionAudit
from bench.evaluation.plan import PlannedPair


@dataclass(frozen=True)
class Event:
    """Something a watcher may show."""

    kind: str
    """`train`, `plan`, `cell`, `chunk`, `done`, `failed`, `wait`, `odd` or `problem`."""
    text: str = ""
    cell: Cell | None = None
    items: int = 0
    """Items finished since the event before."""


Listener = Callable[[Event], None]


def bad_answers(name: str, count: int, of: int) -> str:
    """A defense without a finite answer, in one sentence."""
    return (
        f"{name} gave no finite logits for {count} of {of} clean images; they count as wrong. "
        f"`bench check {name}` shows where."
    )


def refused_offers(cell: Cell, count: int, worst: float) -> str:
    """Attempts that the referee refused, in one sentence."""
    return (
        f"{cell.attack} on {cell.threat}: {count} of {cell.items} images against {cell.defense} "
        f"left ball or box (largest distance {worst:.4f}); they count as unbroken."
    )


def fallen(pair: PlannedPair, audit: PrecisionAudit) -> str:
    """What low precision has missed, in one sentence."""
    return (
        f"{pair.attack.name} on {pair.threat.name}: {audit.fell} of {audit.sampled} sampled "
        f"survivors of {pair.defense.name} in low precision fell in float32; all "
        f"{audit.survivors} were played again in float32."
    )

"""What a run tells whoever watches it, each in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.course import Progress
from bench.engine import Audit
from bench.matrix import Pair
from bench.records import Cell


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


def fallen(pair: Pair, audit: Audit) -> str:
    """What low precision has missed, in one sentence."""
    return (
        f"{pair.attack.name} on {pair.threat.name}: {audit.fell} of {audit.sampled} sampled "
        f"survivors of {pair.defense.name} in low precision fell in float32; all "
        f"{audit.survivors} were played again in float32."
    )


def said(progress: Progress) -> str:
    """One epoch as a line."""
    robust = "" if progress.robust is None else f", robust {progress.robust:.0%}"
    watched = "" if progress.watched is None else f", watched {progress.watched:.0%}"
    return (
        f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.4f}, "
        f"clean {progress.clean:.0%}{robust}{watched}"
    )

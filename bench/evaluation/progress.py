"""What a run shows while it plays: bars on a terminal, one line a cell elsewhere; on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median
from types import TracebackType
from typing import Self, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench.core.cells import CellState
from bench.evaluation.events import Event
from bench.store import CellRow

CellName: TypeAlias = tuple[str, str, str]
"""Threat model, attack, defense."""

UNKNOWN = 0.005  # seconds an item: the guess for an attack of which nothing is recorded


class CostEstimates:
    """Seconds an item has cost, by attack and defense: recorded ones, then those of this run."""

    def __init__(self, rows: Iterable[CellRow]) -> None:
        self._known: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row.state is CellState.DONE and row.items:
                self.learn(row.attack, row.defense, row.seconds / row.items)

    def learn(self, attack: str, defense: str, seconds: float) -> None:
        """Take up what an item of a cell has cost."""
        for key in ((attack, defense), (attack, "")):
            self._known.setdefault(key, []).append(seconds)

    def of(self, attack: str, defense: str) -> float:
        """Expected seconds an item."""
        for key in ((attack, defense), (attack, "")):
            if key in self._known:
                return median(self._known[key])
        return UNKNOWN


class ProgressDisplay:
    """A listener for one or many workers' events."""

    def __init__(
        self, cells: Iterable[CellName], costs: CostEstimates, *, quiet: bool = False
    ) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.costs = costs
        self.open = set(cells)
        self.total = len(self.open)
        self.size = 0
        """Items of a cell, as far as any was seen."""
        self.begun: dict[CellName, float] = {}
        self.items: dict[CellName, int] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.matrix = self.bars.add_task("matrix", total=self.total, left="")
        self.cell = self.bars.add_task("cell", total=None, left="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.cell is None:
            self._say(event.text, fleeting=event.kind in ("train", "wait"))
            return
        cell = event.cell
        name = (cell.threat, cell.attack, cell.defense)
        title = " · ".join(name)
        if event.kind == "cell":
            self.size = cell.items
            self.begun[name], self.items[name] = time.monotonic(), event.items
            self.bars.update(self.cell, description=title, total=cell.items, completed=event.items)
        elif event.kind == "chunk":
            self.items[name] = self.items.get(name, 0) + event.items
            self.bars.update(self.cell, description=title, completed=self.items[name])
        elif event.kind in ("done", "failed"):
            self._close(name, cell.items)
            word = "held" if event.kind == "done" else "FAILED:"
            count = f"[{self.total - len(self.open)}/{self.total}]"
            self._say(f"{count} {title}: {word} {event.text}")
        else:
            self._say(event.text)

    def _close(self, name: CellName, items: int) -> None:
        self.open.discard(name)
        if name in self.begun and items:
            seconds = time.monotonic() - self.begun.pop(name)
            self.costs.learn(name[1], name[2], seconds / items)
        done = self.total - len(self.open)
        self.bars.update(self.matrix, completed=done, left=self._left())

    def _left(self) -> str:
        """Expected time to the end: what the open cells have cost before."""
        expected = sum(self.costs.of(attack, defense) for _, attack, defense in self.open)
        minutes, seconds = divmod(int(expected * self.size), 60)
        return f"about {minutes}:{seconds:02d} left"

    def _say(self, text: str, *, fleeting: bool = False) -> None:
        if fleeting and self.console.is_terminal:
            self.bars.update(self.cell, description=text)
        else:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

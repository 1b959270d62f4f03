"""What a run shows while it plays: bars on a terminal, one line a cell elsewhere; on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench.records import CellState
from bench.runner import Event
from bench.store import CellRow

UNKNOWN = 2.0  # seconds: the guess for a cell of which nothing is recorded


class Costs:
    """Seconds an item has cost before, by attack and defense."""

    def __init__(self, rows: Iterable[CellRow]) -> None:
        seen: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row.state is CellState.DONE and row.items:
                for defense in (row.defense, ""):
                    seen.setdefault((row.attack, defense), []).append(row.seconds / row.items)
        self._known = {key: median(values) for key, values in seen.items()}

    def of(self, attack: str, defense: str, items: int) -> float:
        """Expected seconds of a cell."""
        for key in ((attack, defense), (attack, "")):
            if key in self._known:
                return self._known[key] * items
        return UNKNOWN


class Show:
    """A listener for one or many workers' events."""

    def __init__(self, total: int, costs: Costs, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.costs = costs
        self.total = total
        self.seconds: list[float] = []
        self.done = 0
        self.items: dict[str, int] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.matrix = self.bars.add_task("matrix", total=total, left="")
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
        name = f"{cell.threat} · {cell.attack} · {cell.defense}"
        if event.kind == "cell":
            self.items[cell.key] = event.items
            self.bars.update(self.cell, description=name, total=cell.items, completed=event.items)
        elif event.kind == "chunk":
            self.items[cell.key] = self.items.get(cell.key, 0) + event.items
            self.bars.update(self.cell, description=name, completed=self.items[cell.key])
        elif event.kind in ("done", "failed"):
            self.done += 1
            self.seconds.append(self.costs.of(cell.attack, cell.defense, cell.items))
            self.bars.update(self.matrix, completed=self.done, left=self._left())
            word = "held" if event.kind == "done" else "FAILED:"
            self._say(f"[{self.done}/{self.total}] {name}: {word} {event.text}")

    def _left(self) -> str:
        """Expected time to the end: what the open cells cost before."""
        open_cells = max(self.total - self.done, 0)
        minutes, seconds = divmod(int(sum(self.seconds) / len(self.seconds) * open_cells), 60)
        return f"about {minutes}:{seconds:02d} left"

    def _say(self, text: str, *, fleeting: bool = False) -> None:
        if fleeting and self.console.is_terminal:
            self.bars.update(self.cell, description=text)
        else:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

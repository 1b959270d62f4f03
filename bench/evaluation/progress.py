"""The progress display of a run on stderr: bars on a terminal, elsewhere one line per cell."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median
from typing import Self, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench.core.cells import Cell, CellState
from bench.evaluation.events import (
    CellFailed,
    CellFinished,
    CellsElsewhere,
    CellStarted,
    ChunkRecorded,
    DefenseFailed,
    Event,
    LeaseLost,
    PluginProblem,
    RunNotice,
    TrainingElsewhere,
    TrainingProgress,
)
from bench.store import CellRow

CellName: TypeAlias = tuple[str, str, str]
"""Threat model, attack, defense."""

UNKNOWN_COST = 0.005  # seconds per item, where nothing is recorded about an attack


class CostEstimates:
    """Expected seconds per item by attack and defense, from recorded cells and this run's."""

    def __init__(self, rows: Iterable[CellRow]) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            cell = row.cell
            if row.state is CellState.DONE and cell.items:
                self.add(cell.attack, cell.defense, row.seconds / cell.items)

    def add(self, attack: str, defense: str, seconds: float) -> None:
        """Add the seconds per item of a finished cell."""
        for key in ((attack, defense), (attack, "")):
            self._seconds.setdefault(key, []).append(seconds)

    def estimate(self, attack: str, defense: str) -> float:
        """Expected seconds per item: the pair's median, else the attack's, else a default."""
        known = self.recorded(attack, defense)
        return UNKNOWN_COST if known is None else known

    def recorded(self, attack: str, defense: str) -> float | None:
        """Seconds per item: the pair's median, else the attack's; None without any record."""
        for key in ((attack, defense), (attack, "")):
            if key in self._seconds:
                return median(self._seconds[key])
        return None


class ProgressDisplay:
    """A listener that shows the events of one or several workers."""

    def __init__(
        self, cells: Iterable[CellName], costs: CostEstimates, *, quiet: bool = False
    ) -> None:
        """Show progress over `cells`, those that are not finished yet; nothing if `quiet`."""
        self.console = Console(stderr=True, quiet=quiet)
        self.costs = costs
        self.open = set(cells)
        self.total = len(self.open)
        self.items_per_cell = 0
        """Number of items of the cell that started last."""
        self.started: dict[CellName, float] = {}
        self.items_done: dict[CellName, int] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.matrix_bar = self.bars.add_task("matrix", total=self.total, left="")
        self.cell_bar = self.bars.add_task("cell", total=None, left="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case CellStarted(cell, items_done):
                self._start(cell, items_done)
            case ChunkRecorded(cell, items):
                name = _name(cell)
                self.items_done[name] = self.items_done.get(name, 0) + items
                done = self.items_done[name]
                self.bars.update(self.cell_bar, description=" · ".join(name), completed=done)
            case CellFinished(cell, robust):
                self._finish(cell, f"robust {robust.k}/{robust.n}")
            case CellFailed(cell, reason):
                self._finish(cell, f"FAILED: {reason}")
            case DefenseFailed(defense, reason):
                self._print(f"{defense}: {reason}")
            case TrainingProgress(text):
                self._show_briefly(text)
            case TrainingElsewhere(defense, holder):
                self._show_briefly(f"{defense} is being trained by {holder or 'another worker'}")
            case CellsElsewhere(cell, more, since, holder):
                rest = f" and {more} more cells" if more else ""
                title = " · ".join(_name(cell))
                self._print(f"waiting since {since} for {title}{rest}: {holder} evaluates it")
            case LeaseLost(_, text) | RunNotice(text) | PluginProblem(text):
                self._print(text)

    def _start(self, cell: Cell, items_done: int) -> None:
        name = _name(cell)
        title = " · ".join(name)
        self.items_per_cell = cell.items
        self.started[name], self.items_done[name] = time.monotonic(), items_done
        self.bars.update(self.cell_bar, description=title, total=cell.items, completed=items_done)

    def _finish(self, cell: Cell, result: str) -> None:
        name = _name(cell)
        self.open.discard(name)
        if name in self.started and cell.items:
            seconds = time.monotonic() - self.started.pop(name)
            self.costs.add(cell.attack, cell.defense, seconds / cell.items)
        done = self.total - len(self.open)
        self.bars.update(self.matrix_bar, completed=done, left=self._time_left())
        place = f"[{done}/{self.total}] " if self.total else ""  # from Python no plan is known
        self._print(f"{place}{' · '.join(name)}: {result}")

    def _time_left(self) -> str:
        """Expected time until the open cells are finished."""
        per_item = sum(self.costs.estimate(attack, defense) for _, attack, defense in self.open)
        minutes, seconds = divmod(int(per_item * self.items_per_cell), 60)
        return f"about {minutes}:{seconds:02d} left"

    def _show_briefly(self, text: str) -> None:
        """Show a text that the next one replaces on a terminal; elsewhere a line."""
        if self.console.is_terminal:
            self.bars.update(self.cell_bar, description=text)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _name(cell: Cell) -> CellName:
    return cell.threat, cell.attack, cell.defense

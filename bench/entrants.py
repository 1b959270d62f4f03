"""Submissions in play: the states they go through as a run touches their cells."""

from __future__ import annotations

from collections.abc import Iterable

from bench.records import Cell, CellState
from bench.registry import Registry
from bench.store import Store


class Entrants:
    """Writes `running` when the first cell of a submission is taken up, and how it ended."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self.registry, self.store = registry, store
        self.running: set[str] = set()

    def begin(self, cell: Cell) -> None:
        """A cell was taken up."""
        for kind, name in (("defense", cell.defense), ("attack", cell.attack)):
            submitted = self.registry.find(kind, name).origin == "submission"
            if submitted and name not in self.running:
                self.running.add(name)
                self.store.submission(name, "running")

    def end(self, cells: Iterable[Cell]) -> None:
        """The run is over: `finished`, or `failed` with the first reason."""
        keys = {cell.key for cell in cells}
        rows = [row for row in self.store.cells() if row.key in keys]
        for name in sorted(self.running):
            mine = [row for row in rows if name in (row.defense, row.attack)]
            reasons = [row.reason for row in mine if row.state is CellState.FAILED]
            self.store.submission(name, "failed" if reasons else "finished", *reasons[:1])

"""Submissions in play: the states they go through as a run touches their cells."""

from __future__ import annotations

from collections.abc import Iterable

from bench.core.cells import Cell, CellState
from bench.registry.registry import Registry
from bench.store import Store


class SubmissionStates:
    """Writes `running` when the first cell of a submission is taken up, and how it ended."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self.registry, self.store = registry, store
        self.running: dict[str, str] = {}
        """Name -> kind."""

    def begin(self, cell: Cell) -> None:
        """A cell was taken up."""
        parts = {"defense": cell.defense, "attack": cell.attack, "threat": cell.threat}
        for kind, name in parts.items():
            submitted = bool(name) and self.registry.find(kind, name).origin == "submission"
            if submitted and name not in self.running:
                self.running[name] = kind
                self.store.submission(name, "running")

    def end(self, cells: Iterable[Cell]) -> None:
        """The run is over: `finished`, or `failed` with the first reason."""
        keys = {cell.key for cell in cells}
        rows = [row for row in self.store.cells() if row.key in keys]
        for name, kind in sorted(self.running.items()):
            mine = [row for row in rows if name in (row.defense, row.attack, row.threat)]
            reasons = [row.reason for row in mine if row.state is CellState.FAILED]
            # A board is not to blame for each defense and attack that fails on it.
            excused = kind == "threat" and len(reasons) < len(mine)
            if reasons and not excused:
                self.store.submission(name, "failed", reasons[0])
            else:
                self.store.submission(name, "finished")

    def halt(self) -> None:
        """The run was interrupted: what it played waits for the next."""
        for name in sorted(self.running):
            self.store.submission(name, "queued")

"""The states that a submission passes through while its cells are evaluated."""

from __future__ import annotations

from collections.abc import Iterable

from bench.core.cells import Cell, CellState
from bench.registry.registry import Registry
from bench.store import Store


class SubmissionStates:
    """Records `running` when a submission's first cell starts, and its state after the run."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self.registry, self.store = registry, store
        self.running: dict[str, str] = {}
        """Name -> kind."""

    def begin(self, cell: Cell) -> None:
        """Record `running` for the submissions of a cell that starts."""
        parts = {"defense": cell.defense, "attack": cell.attack, "threat": cell.threat}
        for kind, name in parts.items():
            if self._is_submission(kind, name) and name not in self.running:
                self.running[name] = kind
                self.store.record_submission_state(name, "running")

    def _is_submission(self, kind: str, name: str) -> bool:
        return bool(name) and self.registry.find(kind, name).origin == "submission"

    def end(self, cells: Iterable[Cell]) -> None:
        """Record `finished` after the run, or `failed` with the first reason."""
        keys = {cell.key for cell in cells}
        rows = [row for row in self.store.cells() if row.key in keys]
        for name, kind in sorted(self.running.items()):
            mine = [
                row for row in rows if name in (row.cell.defense, row.cell.attack, row.cell.threat)
            ]
            reasons = [row.reason for row in mine if row.state is CellState.FAILED]
            # A threat model has failed only if every cell has: others fail by attack or defense.
            excused = kind == "threat" and len(reasons) < len(mine)
            if reasons and not excused:
                self.store.record_submission_state(name, "failed", reasons[0])
            else:
                self.store.record_submission_state(name, "finished")

    def halt(self) -> None:
        """Record `queued` after an interrupt: the next run continues."""
        for name in sorted(self.running):
            self.store.record_submission_state(name, "queued")

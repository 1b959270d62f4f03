"""Evaluates the cells of a cascade, each on the examples that it is left by those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bench.core.cells import FAST, Cell, CellState
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.cell_task import CellTask
from bench.evaluation.plan import PlannedPair
from bench.plugin import Traits
from bench.results.example_results import load_results
from bench.results.fast_items import items_of_cell
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.verdicts import all_checks, load_check_context, verdict
from bench.store import CellRow, Store


@dataclass
class CascadeRun:
    """Attack after attack against one built defense."""

    store: Store
    task: Callable[[PlannedPair], CellTask]
    """The task of a pair."""
    plan: Callable[[list[Cell], list[PlannedPair]], None]
    """Adds cells to the database."""
    evaluate: Callable[[CellTask], None]
    """Evaluates a cell if it is open."""
    cells: list[Cell] = field(default_factory=list)
    """The cells so far."""
    before: str = ""
    """Key of the last cell that decides what the next one meets."""
    interrupted: bool = False
    """Whether another worker holds the next cell."""

    def rank(self, pairs: Sequence[PlannedPair]) -> None:
        """Each attack on the examples that the earlier ones have not broken."""
        for pair in pairs:
            if self.interrupted:
                return
            self._next(pair)

    def fast(self, pairs: Sequence[PlannedPair], built: BuiltDefense) -> None:
        """The suite `fast`: its attacks, and `standard` on all survivors where a row is in doubt.

        It is in doubt where one of the audited examples fell or a gradient-masking check warns.
        """
        self.rank(pairs)
        done = len({row.cell.attack for row in self._rows() if row.state is CellState.DONE})
        if self.interrupted or done < sum(not pair.reason for pair in pairs):
            return
        if self._in_doubt(built):
            self.rank(pairs[1:])

    def _next(self, pair: PlannedPair) -> None:
        """Plan and evaluate the next cell."""
        task = self.task(pair)
        cell = replace(task.cell, before=self.before)
        if not pair.reason and (self.before or cell.mode == FAST):
            met = items_of_cell(self.store, cell, task.cell.items)
            cell = replace(cell, items=sum(item < task.cell.items for item in met))
        elif pair.reason:
            cell = task.cell
        self.cells.append(cell)
        self.plan([cell], [pair])
        if pair.reason:
            return
        self.evaluate(task._replace(cell=cell))
        state = self._row(cell).state
        self.interrupted = state in (CellState.RUNNING, CellState.MISSING)
        # What an attack on the first few examples leaves undecided, the next one must meet.
        if state is CellState.DONE and not Traits.of(pair.attack).examples:
            self.before = cell.key

    def _row(self, cell: Cell) -> CellRow:
        (row,) = self.store.cells(key=cell.key)
        return row

    def _rows(self) -> list[CellRow]:
        return [self._row(cell) for cell in self.cells]

    def _in_doubt(self, built: BuiltDefense) -> bool:
        """Whether the row of the suite `fast` needs `standard` on all survivors."""
        known = leaderboards(self.store)
        results = load_results(self.store, self._leaderboard(known), current_only=True)
        context = load_check_context(self.store, results, known)
        name = built.defense.name
        audit = context.audits.get(name)
        checks = all_checks(results, results.defenses[name], context)
        return audit is None or not audit.passed or verdict(checks) != "sound"

    def _leaderboard(self, known: Sequence[Leaderboard]) -> Leaderboard:
        """The leaderboard of the cells of this run."""
        cell = self.cells[0]
        return next(
            one
            for one in known
            if (one.id, one.examples, one.mode) == (cell.threat_id, cell.examples, cell.mode)
        )

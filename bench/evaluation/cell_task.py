"""A cell with all that is needed to evaluate it, and what an exception means for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from bench.core.cells import Cell, CellState, Culprit, Failure
from bench.core.errors import StorageError
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.failures import failure_of
from bench.evaluation.plan import PlannedPair
from bench.evaluation.surrogate_model import PlannedSurrogate
from bench.plugin import Defense
from bench.store import CellRow
from bench.store.waiting import NO_SPACE


class CellTask(NamedTuple):
    """A cell with all that is needed to evaluate it."""

    cell: Cell
    pair: PlannedPair
    defense: BuiltDefense
    surrogate: PlannedSurrogate | None = None
    """The surrogate model of a transfer attack; None for other attacks."""
    failure: Failure | None = None
    """Why the cell cannot be evaluated; None where it can."""

    def as_planned(self, cell: Cell) -> CellTask:
        """The task of a cell planned before; with a failure where its key has changed since."""
        now = replace(self.cell, before=cell.before, items=cell.items)
        if self.failure is None and now.key != cell.key:
            changed = (
                f"{cell.defense} or its surrogate has changed since this cell was planned; run"
                " again."
            )
            failure = Failure(Culprit.USER, changed)
            return CellTask(cell, self.pair, self.defense, failure=failure)
        return self._replace(cell=cell)


def failure_or_end(error: BaseException) -> Failure:
    """The failure of a cell that an exception caused.

    Raises the exception where the database or a disk was unavailable: then the run ends, and no
    cell has failed.
    """
    failure = failure_of(error)
    if failure.culprit is Culprit.PLUGIN:
        return failure
    if isinstance(error, StorageError):
        raise error
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        place = error.filename or "weights"
        raise StorageError(
            f"the disk of {place} {NO_SPACE[error.errno]}; what is recorded is safe, and the same"
            " command continues."
        ) from error
    return failure


def failure_in(row: CellRow) -> Failure | None:
    """Why a cell has failed; None where it has not."""
    if row.state is not CellState.FAILED or row.culprit is None:
        return None
    return Failure(row.culprit, row.reason)


def names_of(pair: PlannedPair) -> tuple[str, str, str]:
    """Threat model, defense and attack of a pair."""
    return pair.threat.name, pair.defense.name, pair.attack.name


def by_defense(pairs: list[PlannedPair]) -> Iterator[tuple[Defense, list[PlannedPair]]]:
    """The pairs of each defense, in the order in which the defenses first come."""
    for name in dict.fromkeys(pair.defense.name for pair in pairs):
        group = [pair for pair in pairs if pair.defense.name == name]
        yield group[0].defense, group

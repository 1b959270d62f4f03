"""The report of one cell: its inputs, state, figures, machines, and how to evaluate it again."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError
from bench.core.fitted import FittedPoint
from bench.core.machines import Machine
from bench.results.second_evaluations import SecondEvaluation, second_evaluations
from bench.store import CellRow, ExamplesRow, Store

KEY_BEGINNING = re.compile(r"[0-9a-f]{1,64}")
SHORT_KEY = 12
"""Characters of a key that pages and commands show."""


@dataclass(frozen=True)
class CellReport:
    """One cell with everything that is recorded about it, but without its outcomes."""

    row: CellRow
    examples: ExamplesRow
    machines: tuple[Machine, ...]
    """The machine classes that computed it."""
    second: tuple[SecondEvaluation, ...]
    """What evaluating it again has shown."""
    fit: FittedPoint | None
    """The point that a shared attack fitted; None for other attacks."""

    @property
    def command(self) -> str:
        """The command that evaluates it again; empty where it has no outcomes of an attack."""
        is_done = self.row.state == CellState.DONE and self.row.cell.attack != CLEAN
        return f"bench reproduce {self.row.key[:SHORT_KEY]}" if is_done else ""


def load_cell_report(store: Store, key: str) -> CellReport:
    """The report of the one cell whose key begins with `key`; BenchError if not exactly one."""
    row = find_cell(store, key)
    done = row.state == CellState.DONE
    again = second_evaluations(store, {row.key: store.outcomes(row.key)}) if done else {}
    return CellReport(
        row,
        store.examples(row.cell.examples),
        store.machines([row.key]).get(row.key, ()),
        again.get(row.key, ()),
        store.fits([row.key]).get(row.key),
    )


def find_cell(store: Store, key: str, *, finished: bool = False) -> CellRow:
    """The one cell whose key begins with `key`.

    `finished` looks among the finished cells of attacks alone. Raises BenchError where not exactly
    one is found.
    """
    if not KEY_BEGINNING.fullmatch(key):
        raise BenchError(
            f"{key!r} is no beginning of a cell's key: it has up to 64 of the signs 0-9 and a-f."
        )
    rows = [row for row in store.cells() if row.key.startswith(key)]
    if finished:
        rows = [r for r in rows if r.state is CellState.DONE and r.cell.attack != CLEAN]
    if len(rows) != 1:
        what = "finished cells" if finished else "cells"
        raise BenchError(
            f"{len(rows)} {what} have a key that begins with {key!r}; `bench report --json` and the"
            " pages show whole keys."
        )
    return rows[0]

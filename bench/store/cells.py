"""Cells: planned once by their key, and listed with their state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields

from sqlalchemy import select, update
from sqlalchemy.engine import Connection, RowMapping

from bench.core.cells import Cell, CellState, Culprit
from bench.core.errors import BenchError
from bench.store import leases, seals
from bench.store.database import insert_new
from bench.store.records import FIGURE_COLUMNS, CellFigures, CellRow, PlannedCell
from bench.store.tables import CELLS

_PLANNABLE = (CellState.MISSING, CellState.SKIPPED, CellState.NOT_APPLICABLE)
_KEPT = (CellState.RUNNING, CellState.DONE)
_CELL = [field.name for field in fields(Cell)]
_FIGURES = [FIGURE_COLUMNS.get(f.name, f.name) for f in fields(CellFigures)]
_STATE = [field.name for field in fields(CellRow) if field.name not in ("cell", "figures")]
_COLUMNS = [CELLS.c[name] for name in (*_CELL, *_STATE, *_FIGURES)]
_BATCH = 500
_NEW: dict[str, object] = {
    "culprit": None,
    "owner": "",
    "fence": 0,
    "lease_until": 0.0,
    "attempts": 0,
    "items_done": 0,
    "seconds": 0.0,
    "seal": "",
}


def plan(
    connection: Connection,
    planned: Iterable[PlannedCell],
    *,
    since: float | None = None,
) -> None:
    """Add cells by their key, once. Running and done cells only take over new names.

    A skipped or failed cell is opened again, unless it failed after `since` (Unix time by `clock`).
    Raises BenchError where a cell is planned in another state than missing, skipped or not
    applicable, or two different cells have the same key.
    """
    moment = leases.clock(connection)
    wanted = _by_key(planned)
    known = _known(connection, list(wanted))
    fresh = {key: plan for key, plan in wanted.items() if key not in known}
    insert_new(connection, CELLS, [_row(key, plan, moment) for key, plan in fresh.items()])
    changed = list(fresh)
    for key, (state, reason, *names) in known.items():
        plan = wanted[key]
        if names != [plan.cell.threat, plan.cell.defense, plan.cell.attack, plan.required]:
            _rename(connection, key, plan)
            changed.append(key)
        if state not in _KEPT and (state, reason) != (plan.state, plan.reason):
            _reopen(connection, key, plan, moment, since)
            changed.append(key)
    seals.seal_leased(connection, CELLS, changed)


def list_cells(
    connection: Connection,
    threat: str | None = None,
    examples: str | None = None,
    mode: str | None = None,
    key: str | None = None,
) -> list[CellRow]:
    """The cells with this threat name, examples digest, mode and key; None matches all.

    They are ordered by threat model, defense, attack and seed.
    """
    query = select(*_COLUMNS).order_by(
        CELLS.c.threat, CELLS.c.defense, CELLS.c.attack, CELLS.c.seed, CELLS.c.key
    )
    wanted = {"threat": threat, "examples": examples, "mode": mode, "key": key}
    for name, value in wanted.items():
        if value is not None:
            query = query.where(CELLS.c[name] == value)
    return [_cell_row(row) for row in connection.execute(query).mappings()]


def _cell_row(row: RowMapping) -> CellRow:
    state = {name: row[name] for name in _STATE} | {
        "state": CellState(row["state"]),
        "culprit": Culprit(row["culprit"]) if row["culprit"] else None,
    }
    figures = {f.name: row[name] for f, name in zip(fields(CellFigures), _FIGURES, strict=True)}
    return CellRow(
        cell=Cell(**{name: row[name] for name in _CELL}),
        figures=None if row["robust"] is None else CellFigures(**figures),
        **state,
    )


def _by_key(planned: Iterable[PlannedCell]) -> dict[str, PlannedCell]:
    wanted: dict[str, PlannedCell] = {}
    for plan in planned:
        if plan.state not in _PLANNABLE:
            raise BenchError(
                f"a cell was planned as {plan.state}: plan it as missing, skipped or"
                " not applicable."
            )
        first = wanted.setdefault(plan.cell.key, plan)
        if asdict(first.cell) != asdict(plan.cell):
            raise BenchError(
                f"{_cell_name(first)} and {_cell_name(plan)} have the same key: their digests"
                " must differ."
            )
    return wanted


def _cell_name(plan: PlannedCell) -> str:
    return f"{plan.cell.attack!r} against {plan.cell.defense!r} on {plan.cell.threat!r}"


def _known(connection: Connection, keys: Sequence[str]) -> dict[str, list[object]]:
    columns = [CELLS.c[name] for name in ("threat", "defense", "attack", "required")]
    query = select(CELLS.c.key, CELLS.c.state, CELLS.c.reason, *columns)
    known: dict[str, list[object]] = {}
    for start in range(0, len(keys), _BATCH):
        batch = query.where(CELLS.c.key.in_(keys[start : start + _BATCH]))
        known |= {key: rest for key, *rest in connection.execute(batch)}
    return known


def _row(key: str, plan: PlannedCell, moment: float) -> dict[str, object]:
    stated = {"state": plan.state, "reason": plan.reason, "required": plan.required}
    stamp = {"key": key, "tier": plan.tier, "updated": moment}
    return asdict(plan.cell) | _NEW | stated | stamp


def _rename(connection: Connection, key: str, plan: PlannedCell) -> None:
    names = {"threat": plan.cell.threat, "defense": plan.cell.defense, "attack": plan.cell.attack}
    renamed = update(CELLS).where(CELLS.c.key == key).values(**names, required=plan.required)
    connection.execute(renamed)


def _reopen(
    connection: Connection, key: str, plan: PlannedCell, moment: float, since: float | None
) -> None:
    stated = {"state": plan.state, "reason": plan.reason, "tier": plan.tier, "updated": moment}
    reopened = (CELLS.c.key == key) & CELLS.c.state.not_in(_KEPT)
    if since is not None and plan.state is CellState.MISSING:
        reopened &= (CELLS.c.state != CellState.FAILED) | (CELLS.c.updated <= since)
    connection.execute(update(CELLS).where(reopened).values(**stated, culprit=None, attempts=0))

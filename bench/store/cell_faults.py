"""Faults of the rows of cells: keys, states, figures, and what other tables say about them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.engine import Connection

from bench.core.cells import CLEAN, Cell, CellState, Culprit
from bench.core.hashing import canonical
from bench.core.isolation import Isolation
from bench.store import seals
from bench.store.faults import Fault, raw_rows, type_faults
from bench.store.known_seals import KnownSeals
from bench.store.records import FIGURE_COLUMNS, CellFigures
from bench.store.seals import Values
from bench.store.tables import CARDS, CELLS, EVIDENCE, EXAMPLES

_CELL = [field.name for field in fields(Cell)]
FIGURES = [FIGURE_COLUMNS.get(f.name, f.name) for f in fields(CellFigures)]


@dataclass
class Context:
    """What the other tables say about cells."""

    labels: dict[str, npt.NDArray[np.int16]] = field(default_factory=dict)
    """Examples -> true classes [n]."""
    threats: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Digest of a threat model -> its names."""
    built_in: set[tuple[str, str]] = field(default_factory=set)
    """Kind and name of plugins whose code runs in the harness's process."""
    voting: set[str] = field(default_factory=set)
    """Random defenses, whose label is the majority of several draws."""
    has_diagnostics: bool = False
    tested: set[tuple[str, str]] = field(default_factory=set)
    """Digest of a defense and of examples that diagnostics have findings about."""

    @classmethod
    def read(cls, connection: Connection) -> Context:
        """Read what is there; the check of those tables reports what cannot be read."""
        found = cls()
        for row in raw_rows(connection, EXAMPLES):
            if isinstance(row["labels"], bytes) and len(row["labels"]) % 2 == 0:
                found.labels[row["digest"]] = np.frombuffer(row["labels"], "<i2").astype(np.int16)
        query = select(CARDS.c.kind, CARDS.c.name, CARDS.c.origin, CARDS.c.digest, CARDS.c.detail)
        for kind, name, origin, digest, detail in connection.execute(query):
            if kind == "defense" and _is_random(detail):
                found.voting.add(name)
            if kind == "threat":
                found.threats[digest].add(name)
            if origin != "submission":
                found.built_in.add((kind, name))
            found.has_diagnostics |= kind == "diagnostic"
        query = select(EVIDENCE.c.defense_digest, EVIDENCE.c.examples).distinct()
        found.tested = {(row[0], row[1]) for row in connection.execute(query)}
        return found


def _is_random(detail: object) -> bool:
    """Whether the detail of a defense's card declares randomness."""
    try:
        declared = json.loads(str(detail))
    except ValueError:  # a damaged card, which is reported as one
        return False
    return isinstance(declared, dict) and declared.get("randomness") is not None


def cell_row_faults(
    connection: Connection, known: KnownSeals, context: Context, cells: dict[str, Values]
) -> Iterator[Fault]:
    """The faults of each row; the rows themselves are added to `cells` by their key."""
    for row in raw_rows(connection, CELLS, order=("key",)):
        key = str(row["key"])
        wrong = list(type_faults(CELLS, key, row))
        yield from wrong
        if wrong:
            known.by_kind["cells"].pop(key, None)
            known.by_kind[seals.RUNS].pop(key, None)
            known.by_kind[seals.OUTCOMES].pop(key, None)
            continue
        cells[key] = row
        content = seals.cell_content(row)
        yield from known.row_faults(CELLS.name, CELLS.name, key, seals.CONTENT, content)
        yield from known.row_faults(CELLS.name, seals.RUNS, key, seals.RUN, row)
        yield from _key_faults(row)
        yield from _state_faults(row)
        yield from _context_faults(row, context)


def _key_faults(row: Values) -> Iterator[Fault]:
    key = Cell(**{name: row[name] for name in _CELL}).key
    if key != row["key"]:
        yield _fault(row, "key", f"its columns give the key {key[:12]}")


def _state_faults(row: Values) -> Iterator[Fault]:
    state = row["state"]
    if state not in list(CellState):
        yield _fault(row, "state", f"there is no state {state!r}")
        return
    if (row["culprit"] in list(Culprit)) != (state == CellState.FAILED):
        yield _fault(row, "culprit", f"is {row['culprit']!r} in state {state}")
    filled = [name for name in FIGURES if row[name] is not None and name != "max_distance"]
    if state == CellState.DONE:
        missing = sorted({*FIGURES} - {*filled, "max_distance"})
        yield from (_fault(row, name, "is missing in a done cell") for name in missing)
    elif filled or row["seal"]:
        yield _fault(row, "state", f"is {state}, and it has the figures of a done cell")
    if not 0 <= row["items_done"] <= row["items"]:
        yield _fault(row, "items_done", f"is {row['items_done']} of {row['items']} items")


def _context_faults(row: Values, context: Context) -> Iterator[Fault]:
    names = context.threats.get(row["threat_id"], {row["threat"]})
    if row["threat_id"] and row["threat"] not in names:
        yield _fault(row, "threat", f"its rules are those of {', '.join(sorted(names))}")
    if row["tier"] not in list(Isolation):
        yield _fault(row, "tier", f"there is no isolation {row['tier']!r}")
    elif row["tier"] != Isolation.IN_PROCESS and _plugins(row) <= context.built_in:
        yield _fault(row, "tier", f"is {row['tier']}, and all its code is in the harness's process")
    if row["items_done"] and row["examples"] not in context.labels:
        yield _fault(row, "examples", "there are no such examples")


def _plugins(row: Values) -> set[tuple[str, str]]:
    named = {("defense", row["defense"])}
    return named if row["attack"] == CLEAN else named | {("attack", row["attack"])}


def evidence_faults(cells: dict[str, Values], context: Context) -> Iterator[Fault]:
    """Evaluated defenses without any finding of a diagnostic; none while a run is under way."""
    if not context.has_diagnostics or any(
        row["state"] in seals.OPEN_STATES for row in cells.values()
    ):
        return
    evaluated = {
        (row["defense_digest"], row["examples"])
        for row in cells.values()
        if row["state"] == CellState.DONE and row["attack"] != CLEAN
    }
    for pair in sorted(evaluated - context.tested):
        text = "no diagnostic has a finding on this evaluated defense"
        yield Fault(EVIDENCE.name, canonical(list(pair)), "", text)


def _fault(row: Values, column: str, text: str) -> Fault:
    return Fault(CELLS.name, row["key"], column, f"{text} ({cell_name(row)})")


def cell_name(row: Values) -> str:
    """The cell as messages name it."""
    threat: Any = row["threat"] or "clean images"
    return f"{row['attack']} against {row['defense']} on {threat}"

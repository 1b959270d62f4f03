"""Seals: a digest of each row, stored apart from it, and one root over those of the results.

An edited row does not match its seal, and a deleted row leaves its seal behind. An edit that also
computes the seals anew is found only against a published root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from sqlalchemy import Boolean, Column, Double, Integer, Table, delete, select
from sqlalchemy.engine import Connection, RowMapping

from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.core.hashing import canonical, digest
from bench.core.outcomes import OUTCOME_DTYPES, Outcomes
from bench.store.codec import unpack
from bench.store.database import upsert
from bench.store.tables import (
    CARDS,
    CELLS,
    CERTIFICATES,
    CHUNKS,
    EVIDENCE,
    EXAMPLES,
    FITS,
    IMAGES,
    POINTS,
    REPLICATIONS,
    SEALS,
    SUBMISSIONS,
    TASKS,
    WEIGHTS,
)

FIRST_REVISION = "0007"
"""The revision that added seals; rows of older databases are sealed by the upgrade."""
_LEASE = ("owner", "fence", "lease_until", "attempts")
UNSEALED = {"cells": _LEASE, "tasks": _LEASE, "replications": ("at",)}
"""Table -> columns on which no result depends; no seal covers them."""
_RUN = ("reason", "culprit", "updated", "items_done", "seconds", "seal")
RUN = [CELLS.c[name] for name in _RUN]
"""Columns of a cell that differ between runs; the seal of kind `runs` covers them, the root not."""
CONTENT = [column for column in CELLS.columns if column.name not in (*_RUN, *_LEASE)]
"""Columns of a cell that its other seal covers."""
OPEN_STATES = (CellState.MISSING, CellState.RUNNING)
"""States of a cell that will be evaluated; the seal does not tell them apart."""
SEALED_ROWS = (
    CARDS, CERTIFICATES, EVIDENCE, EXAMPLES, REPLICATIONS, SUBMISSIONS, TASKS, WEIGHTS,
)  # fmt: skip
"""Tables of which each row has one seal over all its columns; the kind is the table's name."""
SEALED_PARTS = (CHUNKS, IMAGES, POINTS, FITS)
"""Tables whose rows have one seal for each cell: a sum, so that rows are added one by one."""
OUTCOMES = "outcomes"
"""Kind of the seal over all outcomes of a done cell, in item order."""
RUNS = "runs"
IN_ROOT = ("cards", "cells", "certificates", "evidence", "examples", OUTCOMES)
"""Kinds that the root covers: results, without times, leases and the split into chunks.

A reader who evaluates a cell of a published database again must not change its root. The digest of
a defense in a cell contains that of its weights; their record holds the time of the training.
"""
SEAL_KINDS = ("cells", RUNS, OUTCOMES, *(t.name for t in (*SEALED_ROWS, *SEALED_PARTS)))
"""Every kind of seal."""
_SUM_BITS = 256
_MARK = 4
_BATCH = 500

Values: TypeAlias = Mapping[str, Any] | RowMapping


def row_key(table: Table, values: Values) -> str:
    """The primary key as text: plain where it is one column, else a JSON list."""
    parts = [values[column.name] for column in table.primary_key]
    return str(parts[0]) if len(parts) == 1 else canonical(parts)


def row_digest(columns: Iterable[Column[Any]], values: Values) -> str:
    """The digest of these columns of a row, the same for every database and driver.

    >>> row_digest([CARDS.c.name], {"name": "pgd"}) == digest(["pgd"])
    True
    """
    return digest([_plain(column, values[column.name]) for column in columns])


def _plain(column: Column[Any], value: Any) -> object:
    """A value as JSON has it; one of a wrong type never equals one of the right type."""
    if value is None:
        return None
    if isinstance(value, bytes | memoryview):
        return hashlib.sha256(value).hexdigest()
    if isinstance(column.type, Double) and isinstance(value, float | int | np.floating):
        return repr(float(value))
    if isinstance(column.type, Integer | Boolean) and isinstance(
        value, int | np.integer | np.bool_
    ):
        return int(value)
    return str(value) if isinstance(value, str) else [type(value).__name__, repr(value)]


def row_seal(columns: Sequence[Column[Any]], values: Values) -> str:
    """The digest of these columns, followed by the first digits of that of each single one.

    The digits name the columns that were changed; a change goes unnamed once in 65,536.
    """
    marks = [row_digest([column], values)[:_MARK] for column in columns]
    return f"{row_digest(columns, values)}:{''.join(marks)}"


def changed_columns(columns: Sequence[Column[Any]], values: Values, seal: str) -> list[str]:
    """The columns of a row that do not match its seal; empty where the seal itself was changed."""
    marks = seal.partition(":")[2]
    places = range(0, _MARK * len(columns), _MARK)
    if len(marks) != _MARK * len(columns):
        return []
    return [
        column.name
        for column, place in zip(columns, places, strict=True)
        if row_digest([column], values)[:_MARK] != marks[place : place + _MARK]
    ]


def sealed_columns(table: Table) -> list[Column[Any]]:
    """The columns of a table that a seal over a whole row covers."""
    unsealed = UNSEALED.get(table.name, ())
    return [column for column in table.columns if column.name not in unsealed]


def seal_rows(connection: Connection, table: Table, rows: Iterable[Values]) -> None:
    """Seal rows that were just written; each holds a value for every sealed column."""
    columns = sealed_columns(table)
    seals = [_seal(table.name, row_key(table, row), row_seal(columns, row)) for row in rows]
    _write(connection, seals)


def seal_leased(connection: Connection, table: Table, keys: Sequence[str]) -> None:
    """Seal cells or tasks as they are now; they were just written in this transaction."""
    for start in range(0, len(keys), _BATCH):
        chosen = table.c.key.in_(sorted(keys)[start : start + _BATCH])
        # The lock: a row that this transaction only read may change before its seal is written.
        query = select(table).where(chosen).order_by(table.c.key).with_for_update()
        rows = list(connection.execute(query).mappings())
        if table is TASKS:
            seal_rows(connection, TASKS, rows)
        else:
            _write(connection, [seal for row in rows for seal in cell_seals(row)])


def cell_seals(row: Values) -> list[dict[str, str]]:
    """The two seals of a cell: of its content, which the root covers, and of its run."""
    content = cell_content(row)
    return [
        _seal(CELLS.name, row["key"], row_seal(CONTENT, content)),
        _seal(RUNS, row["key"], row_seal(RUN, row)),
    ]


def cell_content(row: Values) -> Values:
    """The row of a cell as its seal has it."""
    settled = row["state"] not in OPEN_STATES
    return dict(row) | {"state": row["state"] if settled else "open"}


def seal_outcomes(connection: Connection, key: str, found: Outcomes) -> None:
    """Seal all outcomes of a cell that is being finished."""
    _write(connection, [_seal(OUTCOMES, key, outcomes_digest(found))])


def outcomes_digest(found: Outcomes) -> str:
    """The digest of outcomes in item order; chunks and packing do not change it."""
    sha = hashlib.sha256(canonical(len(found.item)).encode())
    # Digests of outcomes without shares are those from before the column was there.
    columns = found[:-1] if (found.share == -1).all() else found
    for column, kind in zip(columns, OUTCOME_DTYPES[: len(columns)], strict=True):
        sha.update(np.ascontiguousarray(column, np.dtype(kind).newbyteorder("<")).data)
    return sha.hexdigest()


def add_parts(connection: Connection, table: Table, cell: str, rows: Iterable[Values]) -> None:
    """Add rows that were just written to the seal of their cell."""
    added = sum(part_digest(table, row) for row in rows)
    one = (SEALS.c.kind == table.name) & (SEALS.c.key == cell)
    known = connection.execute(select(SEALS.c.digest).where(one)).scalar()
    total = parts_text(added + int(known or "0", 16))
    _write(connection, [_seal(table.name, cell, total)])


def part_digest(table: Table, row: Values) -> int:
    """The summand of one row of a cell."""
    return int(row_digest(sealed_columns(table), row), 16)


def parts_text(total: int) -> str:
    """The seal of the parts of a cell, from the sum over their rows."""
    return f"{total % (1 << _SUM_BITS):064x}"


def remove_seals(connection: Connection, kinds: Iterable[str], key: str) -> None:
    """Remove the seals of rows that are deleted."""
    ours = SEALS.c.kind.in_(sorted(kinds)) & (SEALS.c.key == key)
    connection.execute(delete(SEALS).where(ours))


def seal_all(connection: Connection) -> None:
    """Seal every row as it is: for a database from before there were seals."""
    for table in SEALED_ROWS:
        seal_rows(connection, table, connection.execute(select(table)).mappings().all())
    keys = list(connection.execute(select(CELLS.c.key)).scalars())
    seal_leased(connection, CELLS, keys)
    for key in keys:
        for table in SEALED_PARTS:
            rows = connection.execute(select(table).where(table.c.cell == key)).mappings().all()
            if rows:
                add_parts(connection, table, key, rows)
    done = connection.execute(select(CELLS.c.key).where(CELLS.c.state == CellState.DONE)).scalars()
    for key in list(done):
        found = _readable_outcomes(connection, key)
        if found is not None:
            seal_outcomes(connection, key, found)


def _readable_outcomes(connection: Connection, key: str) -> Outcomes | None:
    """The outcomes of a cell; None where they are damaged, so that the check names the cell."""
    query = select(CHUNKS.c.outcomes).where(CHUNKS.c.cell == key)
    try:
        return Outcomes.concatenate([unpack(b) for b in connection.execute(query).scalars()])
    except BenchError:
        return None


def root(connection: Connection) -> str:
    """The root of the Merkle tree over the seals of all results."""
    query = select(SEALS.c.kind, SEALS.c.key, SEALS.c.digest).where(SEALS.c.kind.in_(IN_ROOT))
    return merkle_root(sorted(tuple(row) for row in connection.execute(query)))


def merkle_root(leaves: Sequence[tuple[str, ...]]) -> str:
    """The root of a binary tree of SHA-256 over leaves in order, 64 hexadecimal digits.

    A node without a sibling is its own parent. Leaves and nodes are hashed with different first
    bytes, so that no tree passes for a leaf (RFC 6962).
    """
    level = [hashlib.sha256(b"\0" + canonical(leaf).encode()).digest() for leaf in leaves]
    if not level:
        return hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        level = list(_parents(level))
    return level[0].hex()


def _parents(level: Sequence[bytes]) -> Iterator[bytes]:
    for left in range(0, len(level), 2):
        pair = level[left : left + 2]
        yield pair[0] if len(pair) == 1 else hashlib.sha256(b"\1" + b"".join(pair)).digest()


def _seal(kind: str, key: str, sealed: str) -> dict[str, str]:
    return {"kind": kind, "key": key, "digest": sealed}


def _write(connection: Connection, seals: Sequence[dict[str, str]]) -> None:
    upsert(connection, SEALS, *seals)

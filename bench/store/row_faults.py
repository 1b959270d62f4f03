"""Faults of the rows of every table but those of cells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from sqlalchemy import Table
from sqlalchemy.engine import Connection

from bench.store import seals
from bench.store.faults import Fault, raw_rows, type_faults
from bench.store.known_seals import KnownSeals
from bench.store.seals import Values
from bench.store.tables import CERTIFICATES, EXAMPLES, REPLICATIONS, WEIGHTS


def sealed_row_faults(connection: Connection, table: Table, known: KnownSeals) -> Iterator[Fault]:
    """Wrong types, changed columns and contradictions within each row of a table."""
    columns = seals.sealed_columns(table)
    within = _WITHIN.get(table.name, _none)
    for row in raw_rows(connection, table):
        key = seals.row_key(table, row)
        wrong = list(type_faults(table, key, row))
        yield from wrong
        sealed = list(known.row_faults(table.name, table.name, key, columns, row))
        yield from (fault for fault in sealed if fault.column not in {w.column for w in wrong})
        if not wrong:
            yield from within(key, row)


def _none(key: str, row: Values) -> Iterator[Fault]:
    yield from ()


def _examples_faults(key: str, row: Values) -> Iterator[Fault]:
    if len(row["labels"]) != 2 * row["n"]:
        text = f"has {len(row['labels'])} bytes, not 2 for each of {row['n']} examples"
        yield Fault(EXAMPLES.name, key, "labels", text)


def _certificate_faults(key: str, row: Values) -> Iterator[Fault]:
    if len(row["certified"]) != -(-row["n"] // 8):
        text = f"has {len(row['certified'])} bytes, not 1 for each 8 of {row['n']} examples"
        yield Fault(CERTIFICATES.name, key, "certified", text)


def _weights_faults(key: str, row: Values) -> Iterator[Fault]:
    if hashlib.sha256(row["content"]).hexdigest() != row["digest"]:
        yield Fault(WEIGHTS.name, key, "content", "does not have the recorded digest")


def _replication_faults(key: str, row: Values) -> Iterator[Fault]:
    if hashlib.sha256(row["outcomes"]).hexdigest() != row["digest"]:
        yield Fault(REPLICATIONS.name, key, "outcomes", "do not have the recorded digest")


_WITHIN: dict[str, Callable[[str, Values], Iterator[Fault]]] = {
    "examples": _examples_faults,
    "certificates": _certificate_faults,
    "weights": _weights_faults,
    "replications": _replication_faults,
}

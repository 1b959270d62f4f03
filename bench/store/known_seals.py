"""The stored seals beside the rows: each is taken once, and those that are left have no row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column
from sqlalchemy.engine import Connection

from bench.core.hashing import canonical
from bench.store import seals
from bench.store.faults import Fault, FaultList, raw_rows
from bench.store.seals import Values
from bench.store.tables import SEALS

CHANGED = "it was changed after it was written, and does not match its seal"


class KnownSeals:
    """All seals of a database, compared with its rows one by one."""

    def __init__(self, connection: Connection, faults: FaultList) -> None:
        self.by_kind: dict[str, dict[str, str]] = {kind: {} for kind in seals.SEAL_KINDS}
        faults.collect(SEALS.name, self._read(connection))

    def _read(self, connection: Connection) -> Iterator[Fault]:
        for row in raw_rows(connection, SEALS):
            kind, key, digest = (str(row[name]) for name in ("kind", "key", "digest"))
            if kind in self.by_kind:
                self.by_kind[kind][key] = digest
            else:
                yield Fault(SEALS.name, canonical([kind, key]), "kind", "there is no such kind")

    def row_faults(
        self,
        table: str,
        kind: str,
        key: str,
        columns: Sequence[Column[Any]],
        values: Values,
    ) -> Iterator[Fault]:
        """What is wrong about a row and its seal, which is taken."""
        known = self.by_kind[kind].pop(key, None)
        if known is None:
            yield Fault(table, key, "", "it has no seal: it was not written by this program")
        elif known != seals.row_seal(columns, values):
            changed = seals.changed_columns(columns, values, known)
            yield from (Fault(table, key, name, CHANGED) for name in changed)
            if not changed:
                yield Fault(table, key, "", "its seal was changed")

    def sum_faults(self, kind: str, cell: str, total: int | None) -> Iterator[Fault]:
        """What is wrong about the parts of a cell and their seal, which is taken.

        `total` is the sum over the rows; None where damage of a row was reported already.
        """
        known = self.by_kind[kind].pop(cell, None)
        if total is not None and known != seals.parts_text(total):
            yield Fault(kind, cell, "", "rows were added, changed or removed: the seal differs")

    def left_faults(self) -> Iterator[Fault]:
        """The rows that are missing: their seals are left."""
        for kind, left in self.by_kind.items():
            if kind in (seals.RUNS, seals.OUTCOMES):
                continue
            for key in sorted(left):
                yield Fault(kind, key, "", "the row is missing, its seal is still there")
        extra = self.by_kind[seals.OUTCOMES].keys() | self.by_kind[seals.RUNS].keys()
        for key in sorted(extra - self.by_kind["cells"].keys()):
            yield Fault("cells", key, "", "a seal of its results is there, and no results are")

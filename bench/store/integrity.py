"""Integrity check of a database: every key, digest and seal is computed anew from its row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import Connection

from bench.store import cell_faults, images, row_faults, seals
from bench.store.faults import (
    FILE,
    READING_ERRORS,
    Fault,
    FaultList,
    file_faults,
    schema_faults,
    tolerant_text,
)
from bench.store.known_seals import KnownSeals
from bench.store.outcome_faults import OutcomeCheck, fit_faults, image_faults, point_faults
from bench.store.seals import Values
from bench.store.tables import CHUNKS


def problems(connection: Connection, folder: Path) -> list[Fault]:
    """Every fault of the database or its files, with its place; empty where there is none."""
    found = FaultList()
    with tolerant_text(connection):
        found.collect(FILE, file_faults(connection))
        try:
            shape = schema_faults(connection)
        except READING_ERRORS as error:
            cause = getattr(error, "orig", error)
            return [*found, Fault(FILE, "", "", f"the schema cannot be read: {cause}")]
        found += shape
        if shape:
            # Rows are compared by the columns that the program knows, which must all be there.
            return found
        _collect_row_faults(connection, found)
        found.collect(FILE, _image_file_faults(connection, folder))
    return found


def _collect_row_faults(connection: Connection, found: FaultList) -> None:
    known = KnownSeals(connection, found)
    for table in seals.SEALED_ROWS:
        found.collect(table.name, row_faults.sealed_row_faults(connection, table, known))
    try:
        context = cell_faults.Context.read(connection)
    except READING_ERRORS:
        return  # the tables that cannot be read are among the faults
    cells: dict[str, Values] = {}
    found.collect("cells", cell_faults.cell_row_faults(connection, known, context, cells))
    found.collect("chunks", OutcomeCheck(connection, known, context, cells).faults())
    found.collect("images", image_faults(connection, known))
    found.collect("points", point_faults(connection, known))
    found.collect("fits", fit_faults(connection, known))
    found.collect("evidence", cell_faults.evidence_faults(cells, context))
    found.collect("seals", known.left_faults())


def _image_file_faults(connection: Connection, folder: Path) -> Iterator[Fault]:
    for digest in sorted(set(images.files_of(connection))):
        path = images.path_of(folder, digest)
        if not path.exists():
            yield Fault(CHUNKS.name, digest, "exact", f"{path} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Fault(CHUNKS.name, digest, "exact", f"{path} was altered")

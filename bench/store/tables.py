"""The tables as the newest migration leaves them."""

from __future__ import annotations

from typing import TypeAlias, get_type_hints

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
)

from bench.core.cells import BALANCED_ORDER, Cell
from bench.store.records import FIGURE_COLUMNS, CellFigures

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""Every known revision, oldest first; the last one is written."""

METADATA = MetaData()

AnyRow: TypeAlias = Row[tuple[object, ...]]
"""A row of any query."""


def _leased() -> list[Column[object]]:
    """The columns of a table whose rows can be leased."""
    return [
        Column("key", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("culprit", Text),
        Column("owner", Text, nullable=False),
        Column("fence", Integer, nullable=False),
        Column("lease_until", Double, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("updated", Double, nullable=False),
    ]


_SQL_TYPES = {str: Text, int: Integer, float | None: Double}
_BIG = ("seed", "forwards", "gradients", "looks")
"""Integer columns of 64 bits."""


def _columns_of(record: type, *, nullable: bool) -> list[Column[object]]:
    """One column for each field of a record."""
    columns: list[Column[object]] = []
    for field, kind in get_type_hints(record).items():
        name = FIGURE_COLUMNS.get(field, field)
        type_ = BigInteger if name in _BIG else _SQL_TYPES[kind]
        columns.append(Column(name, type_, nullable=nullable, server_default=_ADDED.get(name)))
    return columns


_ADDED = {"before": ""}
"""Columns that a migration added, with the value that older rows got."""

CARDS = Table(
    "cards",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("origin", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("cite", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

EXAMPLES = Table(
    "examples",
    METADATA,
    Column("digest", Text, primary_key=True),
    Column("dataset", Text, nullable=False),
    Column("n", Integer, nullable=False),
    Column("labels", LargeBinary, nullable=False),
    Column("classes", Text, nullable=False),
    Column("shape", Text, nullable=False),
    Column("order", Text, nullable=False, server_default=BALANCED_ORDER),
)

CELLS = Table(
    "cells",
    METADATA,
    *_leased(),
    *_columns_of(Cell, nullable=False),
    Column("required", Boolean, nullable=False),
    Column("tier", Text, nullable=False),
    Column("items_done", Integer, nullable=False),
    Column("seconds", Double, nullable=False),
    *_columns_of(CellFigures, nullable=True),
    Column("seal", Text, nullable=False),
    Index("cells_of_a_board", "threat", "examples", "mode"),
)

TASKS = Table("tasks", METADATA, *_leased())

CHUNKS = Table(
    "chunks",
    METADATA,
    Column("cell", Text, ForeignKey("cells.key"), primary_key=True),
    Column("start", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("first", Integer, nullable=False),
    Column("last", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("exact", Text, nullable=False),
    Column("outcomes", LargeBinary, nullable=False),
    Column("machine", Text, nullable=False, server_default=""),
    # It holds both columns, so that the outcomes before them are not read.
    Index("machines_of_cells", "cell", "machine"),
)

IMAGES = Table(
    "images",
    METADATA,
    Column("cell", Text, ForeignKey("cells.key"), primary_key=True),
    Column("item", Integer, primary_key=True),
    Column("shape", Text, nullable=False),
    Column("original", LargeBinary, nullable=False),
    Column("adversarial", LargeBinary, nullable=False),
    Column("true_label", Integer, nullable=False),
    Column("clean_label", Integer, nullable=False),
    Column("clean_confidence", Double, nullable=False),
    Column("label", Integer, nullable=False),
    Column("confidence", Double, nullable=False),
)

POINTS = Table(
    "points",
    METADATA,
    Column("cell", Text, ForeignKey("cells.key"), primary_key=True),
    Column("start", Integer, primary_key=True),
    Column("shape", Text, nullable=False),
    Column("points", LargeBinary, nullable=False),
)

FITS = Table(
    "fits",
    METADATA,
    Column("cell", Text, ForeignKey("cells.key"), primary_key=True),
    Column("shape", Text, nullable=False),
    Column("point", LargeBinary, nullable=False),
    Column("training", Text, nullable=False),
    Column("forwards", BigInteger, nullable=False),
    Column("gradients", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("machine", Text, nullable=False),
)

EVIDENCE = Table(
    "evidence",
    METADATA,
    Column("defense_digest", Text, primary_key=True),
    Column("examples", Text, primary_key=True),
    Column("diagnostic", Text, primary_key=True),
    Column("defense", Text, nullable=False),
    Column("finding", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("source", Text, nullable=False, server_default=""),
)

CERTIFICATES = Table(
    "certificates",
    METADATA,
    Column("defense_digest", Text, primary_key=True),
    Column("threat_id", Text, primary_key=True),
    Column("examples", Text, primary_key=True),
    Column("certifier", Text, primary_key=True),
    Column("defense", Text, nullable=False),
    Column("exact", Boolean, nullable=False),
    Column("n", Integer, nullable=False),
    Column("certified", LargeBinary, nullable=False),
    Column("certifier_digest", Text, nullable=False, server_default=""),
)

SUBMISSIONS = Table(
    "submissions",
    METADATA,
    Column("step", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Double, nullable=False),
)

WEIGHTS = Table(
    "weights",
    METADATA,
    Column("recipe", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("machine", Text, nullable=False),
    Column("record", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

REPLICATIONS = Table(
    "replications",
    METADATA,
    Column("cell", Text, ForeignKey("cells.key"), primary_key=True),
    Column("machine", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("differ", Integer, nullable=False),
    Column("outcomes", LargeBinary, nullable=False),
)

SEALS = Table(
    "seals",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
)

"""Options that several commands share, and how commands print JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bench.core.cells import SCHEMA

Database = Annotated[
    str | None,
    typer.Option("--db", help="Database URL or file; default: $BENCH_DB, else ./bench.db."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with a schema number.")]
Mode = Annotated[
    str,
    typer.Option(
        "--mode",
        help="full: every attack meets every example. rank: only examples not broken yet. "
        "--suite fast has a mode of its own.",
    ),
]
Order = Annotated[
    str,
    typer.Option(
        "--order",
        help="balanced: the first N examples of an order that alternates between the classes. "
        "file: the first N of the data set's file, as RobustBench counts.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        help="Examples on the device at once; default: 512 of at most 256 values, else 128.",
    ),
]
Unsandboxed = Annotated[
    bool,
    typer.Option(
        "--allow-unsandboxed",
        help="Run submitted code in this process, with all your permissions.",
    ),
]


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout, its schema number first."""
    json.dump({"schema": SCHEMA, **document}, sys.stdout, indent=1)
    sys.stdout.write("\n")

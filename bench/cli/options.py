"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bench.core.cells import SCHEMA

Database = Annotated[
    str | None, typer.Option("--db", help="Database URL; else $BENCH_DB, else ./bench.db.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with a schema number.")]
Mode = Annotated[
    str, typer.Option("--mode", help="full: every cell is whole. rank: survivors only go on.")
]
Unsandboxed = Annotated[
    bool,
    typer.Option(
        "--allow-unsandboxed", help="Run submitted code in this process, with all your rights."
    ),
]


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout, its schema number first."""
    json.dump({"schema": SCHEMA, **document}, sys.stdout, indent=1)
    sys.stdout.write("\n")


def url(text: str | None) -> str | None:
    """A database URL; a plain path means SQLite."""
    if text is None or "://" in text:
        return text
    return f"sqlite:///{text}"

"""`bench check-table`: consistency checks of published figures."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, print_json


def add_table_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command("check-table")(check_table)


def check_table(
    files: Annotated[
        list[Path], typer.Argument(help="Tables of the same models, as CSV or TOML files.")
    ],
    json: AsJson = False,
) -> None:
    """Check published figures for contradictions; no images or models are needed.

    \f
    Raises typer.Exit with code 4 where a check warns.
    """
    from bench.results.foreign_table import read_table
    from bench.results.foreign_table_checks import TableState, check_tables

    results = check_tables([read_table(file) for file in files])
    if json:
        print_json({"checks": [asdict(result) for result in results]})
    else:
        for result in results:
            for sentence in result.sentences:
                print(f"{result.state:<10}  {result.check:<30}  {sentence}")
    counts = Counter(result.state for result in results)
    print(", ".join(f"{n} {state}" for state, n in sorted(counts.items())), file=sys.stderr)
    if counts[TableState.WARNING]:
        raise typer.Exit(4)

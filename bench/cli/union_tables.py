"""The score over several perturbation sets that `bench report --table union` prints."""

from __future__ import annotations

import sys

UNION_TABLE = "union"
"""The name of the table for `bench report --table`."""


def print_union_table(
    database: str | None, threat: str | None, *, order: str | None = None, format_: str = "text"
) -> None:
    """Write the union and the average over the sets of a data set to stdout, notes to stderr.

    `threat` names the data set; None: the first in the database; `format_`: text, csv, markdown or
    latex. Raises BenchError where fewer than two sets have results.
    """
    from rich.console import Console

    from bench.core.cells import BALANCED_ORDER
    from bench.results.leaderboards import find_leaderboard
    from bench.results.set_unions import load_set_union, union_table
    from bench.results.table_formats import table_as_csv, table_as_latex, table_as_markdown
    from bench.store import Store
    from bench.store.damage import explained_damage

    with explained_damage(database), Store.open(database, read_only=True) as store:
        dataset = find_leaderboard(store, threat, order=order).dataset if threat else None
        found = load_set_union(store, dataset, order or BALANCED_ORDER)
        root = store.root()
    table = union_table(found)
    if format_ == "text":
        Console().print(table.in_blocks())
    elif format_ == "latex":
        sys.stdout.write(table_as_latex(table, f"{found.dataset}-{UNION_TABLE}", root))
    else:
        written = table_as_csv if format_ == "csv" else table_as_markdown
        sys.stdout.write(written(table))
    for row in found.rows:
        if row.tied:
            print(f"{row.defense}: not told apart from {', '.join(row.tied)}", file=sys.stderr)

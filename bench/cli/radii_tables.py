"""The table over radii that `bench run --eps` and `bench report --table radii` print."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from shlex import quote

from bench.cli.variant_options import threat_variants_of
from bench.core.radii import exact_fraction, radius_text

RADII_TABLE = "radii"
"""The name of the table for `bench report --table`."""
CONSISTENT = (
    "No figure rises with the radius, and no iterative attack leaves more than a one-step attack, "
    "by exact paired tests."
)


def print_radii_table(
    database: str | None,
    threat: str | None,
    *,
    mode: str = "full",
    order: str | None = None,
    radii: Collection[float] | None = None,
    format_: str = "text",
) -> None:
    """Write robust accuracy by attack and radius to stdout, and contradictions to stderr.

    `radii`: those of the table, None for all that have results; `format_`: text, csv, markdown or
    latex. Raises BenchError where no attack is done within two radii.
    """
    from rich.console import Console

    from bench.results.leaderboards import find_leaderboard
    from bench.results.radii_table import radii_table
    from bench.results.table_formats import table_as_csv, table_as_latex, table_as_markdown
    from bench.store import Store
    from bench.store.damage import explained_damage

    with explained_damage(database), Store.open(database, read_only=True) as store:
        board = find_leaderboard(store, threat, mode, order)
        found, root = radii_table(store, board, radii), store.root()
    if format_ == "text":
        Console().print(found.table.in_blocks())
    elif format_ == "latex":
        sys.stdout.write(table_as_latex(found.table, f"{board.name}-{RADII_TABLE}", root))
    else:
        written = table_as_csv if format_ == "csv" else table_as_markdown
        sys.stdout.write(written(found.table))
    for sentence in found.contradictions:
        print(f"warning: {sentence}", file=sys.stderr)
    if not found.contradictions:
        print(CONSISTENT, file=sys.stderr)


def print_radii_of_run(
    database: str | None, threats: Sequence[str], eps: str, norm: str, order: str
) -> None:
    """Write one table for each threat model of a run, and the commands of its full reports.

    `eps` and `norm` are the options of the run. Raises BenchError where no attack is done within
    two radii.
    """
    radii = sorted({exact_fraction(text.strip()) for text in eps.split(",")})
    for threat in threats:
        names = threat_variants_of([threat], ",".join(map(radius_text, radii)), norm)
        print_radii_table(database, names[0], order=order, radii=set(map(float, radii)))
        where = f" --db {quote(database)}" if database else ""
        for name in names:
            print(f"full report: bench report --threat {quote(name)}{where}", file=sys.stderr)

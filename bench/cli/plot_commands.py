"""`bench plot`: curves, matrix and gallery of a database, as figures for a paper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Database, Mode
from bench.cli.read_commands import ExampleOrder, ThreatModelName
from bench.core.errors import BenchError

CURVE_KINDS = {"accuracy-eps": "eps", "accuracy-steps": "steps"}
"""Kind of curve -> its parameter."""
PLOT_KINDS = (*CURVE_KINDS, "matrix", "gallery")


def add_plot_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command("plot")(plot_results)


def plot_results(
    kind: Annotated[str, typer.Argument(help=", ".join(PLOT_KINDS))],
    out: Annotated[Path, typer.Option(help="An svg, png or pdf file; of a curve also csv.")],
    threat: ThreatModelName = None,
    defense: Annotated[
        list[str] | None, typer.Option(help="A defense or a pattern; by default all.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="An attack or a pattern; by default all.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, max=16, help="Rows of a gallery.")] = 6,
    log: Annotated[bool, typer.Option("--log", help="A logarithmic axis of eps or steps.")] = False,
    mode: Mode = "full",
    order: ExampleOrder = None,
    db: Database = None,
) -> None:
    """Draw accuracy against eps or steps, the matrix, or a gallery of adversarial examples.

    \f
    Raises BenchError where the kind or the file is unknown, or there is nothing to draw.
    """
    from bench.results import plots
    from bench.results.leaderboards import find_leaderboard
    from bench.store import Store
    from bench.store.damage import explained_damage

    if kind not in PLOT_KINDS:
        raise BenchError(f"bench plot got {kind!r}; use one of {', '.join(PLOT_KINDS)}.")
    formats = (*plots.FIGURE_FORMATS, *(["csv"] if kind in CURVE_KINDS else []))
    if out.suffix[1:].lower() not in formats:
        raise BenchError(f"--out is {str(out)!r}; {kind} is written as {', '.join(formats)}.")
    names = (defense or (), attack or ())
    with explained_damage(db), Store.open(db, read_only=True) as store:
        board = find_leaderboard(store, threat, mode, order)
        if kind in CURVE_KINDS:
            parameter = CURVE_KINDS[kind]
            curves = plots.load_curves(store, board, parameter, names)
            if out.suffix.lower() == ".csv":
                plots.write_points(curves, parameter, out)
                return
            figure = plots.curves_figure(board, parameter, curves, logarithmic=log)
        elif kind == "matrix":
            figure = plots.matrix_figure(store, board, names)
        else:
            figure = plots.gallery_figure(store, board, names, examples)
        plots.write_figure(figure, out, store.root())
    print(f"{out}: {kind}, {board.name}, {board.n} examples", file=sys.stderr)

"""`bench compare`: paired tests of named attacks or defenses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import AsJson, Database, Mode, print_json
from bench.cli.read_commands import ExampleOrder, ThreatModelName

if TYPE_CHECKING:
    from bench.results.comparison import PairComparison

SHOWN_EXAMPLES = 8
"""Examples of one side that a line of text lists."""


def add_compare_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command("compare")(compare_names)


def compare_names(
    names: Annotated[list[str], typer.Argument(help="Two or more attacks, or defenses.")],
    threat: ThreatModelName = None,
    defense: Annotated[
        list[str] | None, typer.Option(help="Compare attacks against this defense; repeatable.")
    ] = None,
    mode: Mode = "full",
    order: ExampleOrder = None,
    db: Database = None,
    json: AsJson = False,
) -> None:
    """Compare attacks over defenses, or defenses, by exact paired tests on the same examples."""
    from bench.results.comparison import compare
    from bench.results.example_results import load_results
    from bench.results.leaderboards import find_leaderboard
    from bench.store import Store

    with Store.open(db, read_only=True) as store:
        board = find_leaderboard(store, threat, mode, order)
        found = compare(load_results(store, board), names, defense or ())
    if json:
        print_json({"threat": board.name, "pairs": [pair.record() for pair in found]})
        return
    print_comparisons(found)


def print_comparisons(found: Sequence[PairComparison]) -> None:
    """Write a table of the pairs, and how often each name won, to stdout."""
    from rich.console import Console

    from bench.results.text_table import BlockTable, TextColumn

    attacks = bool(found[0].defense)
    columns = (
        *([TextColumn("Defense", "left")] if attacks else []), TextColumn("A", "left"),
        TextColumn("B", "left"), TextColumn("n"), TextColumn("Both"), TextColumn("Only A"),
        TextColumn("Only B"), TextColumn("p, corrected"), TextColumn("Better", "left"),
    )  # fmt: skip
    rows = [
        (
            *([pair.defense] if attacks else []), pair.a, pair.b, str(pair.n), str(pair.both),
            str(len(pair.only_a)), str(len(pair.only_b)), f"{pair.adjusted:.2g}",
            pair.winner or "tied",
        )
        for pair in found
    ]  # fmt: skip
    what = "Examples broken" if attacks else "Robust examples"
    console = Console()
    console.print(BlockTable(f"{what}, by pair", columns, rows, keys=3 if attacks else 2))
    for sentence in _sentences(found):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _sentences(found: Sequence[PairComparison]) -> list[str]:
    """How often each name won, and the first examples that only one of a pair has."""
    names = dict.fromkeys(name for pair in found for name in (pair.a, pair.b))
    wins = {name: sum(pair.winner == name for pair in found) for name in names}
    sentences = [f"{name}: better in {wins[name]} of {_pairs_of(found, name)}." for name in names]
    for pair in found:
        for name, only in ((pair.a, pair.only_a), (pair.b, pair.only_b)):
            if pair.winner and only:
                where = f" against {pair.defense}" if pair.defense else ""
                more = ", ..." if len(only) > SHOWN_EXAMPLES else ""
                listed = ", ".join(map(str, only[:SHOWN_EXAMPLES]))
                other = pair.b if name == pair.a else pair.a
                sentences.append(f"Only {name}, not {other}{where}: examples {listed}{more}.")
    return sentences


def _pairs_of(found: Sequence[PairComparison], name: str) -> int:
    return sum(name in (pair.a, pair.b) for pair in found)

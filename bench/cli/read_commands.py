"""Commands that only read: `bench list`, `show`, `report`, `export` and `leaderboard`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import AsJson, Database, Mode, Unsandboxed, print_json
from bench.cli.radii_tables import RADII_TABLE, print_radii_table
from bench.cli.union_tables import UNION_TABLE, print_union_table
from bench.core.cards import Card, card_record, kind_fields
from bench.core.errors import BenchError
from bench.registry.card_index import ListedCards, indexed_cards

LISTED_KINDS = ("attacks", "defenses", "threats", "datasets", "certifiers", "diagnostics")
LISTS = (*LISTED_KINDS, "suites", "submissions")
WHOLE_FORMATS = ("text", "json")
"""Formats of `bench report` that hold more than tables."""
REPORT_FORMATS = (*WHOLE_FORMATS, "csv", "markdown", "latex")
CORRUPTION_TABLE = "corruptions"
"""The name of the table of corruptions for `bench report --table`."""
export = typer.Typer(help="Write outcomes or images to a file.", no_args_is_help=True)

ExampleOrder = Annotated[
    str | None,
    typer.Option(
        "--order", help="balanced or file: of which order the examples are the first ones."
    ),
]
ThreatModelName = Annotated[
    str | None,
    typer.Option(help="A threat model; by default the first in the database."),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")]
OpenBrowser = Annotated[bool, typer.Option("--open/--no-open", help="Whether to open a browser.")]
ExportFolder = Annotated[
    Path | None, typer.Option(help="Write the pages as plain HTML to this folder and exit.")
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        help="A host name or address under which others open the pages; can be repeated.",
    ),
]


def add_read_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command("list")(list_plugins)
    for command in (show, report, leaderboard):
        app.command()(command)
    app.add_typer(export, name="export")


def list_plugins(
    kind: Annotated[str, typer.Argument(help=", ".join(LISTS))],
    json: AsJson = False,
    db: Database = None,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """List all plugins of a kind, all attack suites, or all submissions with their states.

    \f
    Raises BenchError where there is no list of that kind.
    """
    if kind == "submissions":
        list_submissions(db, as_json=json)
        return
    if kind == "suites":
        list_suites(as_json=json)
        return
    if kind not in LISTED_KINDS:
        raise BenchError(f"bench list got {kind!r}; use one of {', '.join(LISTS)}.")
    found = _all_cards(allow_unsandboxed)
    for problem in found.problems:
        print(f"refused: {problem}", file=sys.stderr)
    print_cards([card for card in found.cards if card.kind == kind[:-1]], as_json=json)


def print_cards(cards: Sequence[Card], *, as_json: bool) -> None:
    """Write cards to stdout, one line each or as JSON."""
    if as_json:
        print_json({"items": [card_record(card) for card in cards]})
        return
    width = max((len(card.name) for card in cards), default=0)
    for card in cards:
        print(f"{card.name:<{width}}  {card.origin:<11}  {card.summary}")


def list_submissions(database: str | None, *, as_json: bool) -> None:
    """Print every submission with its state."""
    from bench.store import Store

    with Store.open(database, read_only=True) as store:
        entries = store.submissions()
    if as_json:
        items = [
            {**entry._asdict(), "history": [step._asdict() for step in entry.history]}
            for entry in entries
        ]
        print_json({"items": items})
        return
    for entry in entries:
        print(f"{entry.name}  {entry.state}  {entry.reason}".rstrip())


def list_suites(*, as_json: bool) -> None:
    """Print every attack suite with its attacks per perturbation set."""
    from bench.results.fast_suite import all_suites

    if as_json:
        print_json({"items": [asdict(suite) for suite in all_suites().values()]})
        return
    for suite in all_suites().values():
        print(f"{suite.name}  {suite.summary}")
        for norm, attacks in suite.attacks.items():
            print(f"  {norm}: {', '.join(attacks)}")


def show(
    name: Annotated[str, typer.Argument(help="Name of a plugin of any kind.")],
    json: AsJson = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Show everything that a plugin declares.

    \f
    Raises BenchError where no plugin has that name.
    """
    kinds = [kind[:-1] for kind in LISTED_KINDS]
    cards = [card for card in _all_cards(allow_unsandboxed).cards if card.name == name]
    found = sorted(cards, key=lambda card: kinds.index(card.kind))
    if not found:
        raise BenchError(
            f"no plugin is named {name!r}; `bench list attacks` and the other lists show all names."
        )
    if json:
        print_json({"items": [card_record(card) for card in found]})
        return
    for card in found:
        print_card(card)


def print_card(card: Card) -> None:
    """Write a card to stdout, with one line for each field of its kind."""
    print(f"{card.kind} {card.name} ({card.origin})\n{card.summary}\n{card.cite}".strip())
    for key, value in kind_fields(card).items():
        print(f"  {key}: {jsonlib.dumps(value)}")


def report(
    threat: ThreatModelName = None,
    mode: Mode = "full",
    suite: Annotated[
        str, typer.Option(help="Add the robust accuracy over the attacks of this suite alone.")
    ] = "",
    order: ExampleOrder = None,
    db: Database = None,
    json: AsJson = False,
    format_: Annotated[
        str, typer.Option("--format", help="text, json, csv, markdown or latex (booktabs).")
    ] = "text",
    table: Annotated[
        str,
        typer.Option(
            help="ranking, matrix or corruptions, for papers or CSV; radii or union in any format."
        ),
    ] = "",
) -> None:
    """Print the leaderboard of a threat model: ranking, matrix and gradient-masking checks.

    \f
    Raises BenchError for an unknown format, or a table that it does not have.
    """
    chosen = "json" if json else format_
    if chosen not in REPORT_FORMATS:
        raise BenchError(f"--format is {chosen!r}; use one of {', '.join(REPORT_FORMATS)}.")
    if table == RADII_TABLE and chosen != "json":
        print_radii_table(db, threat, mode=mode, order=order, format_=chosen)
        return
    if table == UNION_TABLE and chosen != "json":
        print_union_table(db, threat, order=order, format_=chosen)
        return
    if table and chosen in WHOLE_FORMATS:
        raise BenchError(f"--table is for csv, markdown and latex; {chosen} has the whole report.")
    reports = read_reports(db, [threat], mode, suite, order)
    if chosen in WHOLE_FORMATS:
        print_reports(reports, as_json=chosen == "json")
    else:
        print_tables(reports[0], chosen, table)


def print_tables(document: dict[str, Any], format_: str, name: str) -> None:
    """Write the tables of a report to stdout; as CSV one table, by default the ranking."""
    from bench.results import report_tables, table_formats
    from bench.results.corruption_rows import corruption_table

    def found_tables(which: str) -> list[report_tables.ReportTable]:
        """The tables of a name, or ranking and matrix."""
        if which == CORRUPTION_TABLE:
            return [corruption_table(document, means=format_ != "csv")]
        return report_tables.report_tables(document, which)

    if format_ == "csv":
        (found,) = found_tables(name or "ranking")
        listed = report_tables.matrix_list(document) if found.name == "matrix" else found
        sys.stdout.write(table_formats.table_as_csv(listed))
        return
    for table in found_tables(name):
        label = f"{document['threat']['name']}-{table.name}"
        written = (
            table_formats.table_as_markdown(table)
            if format_ == "markdown"
            else table_formats.table_as_latex(table, label, document["root"])
        )
        sys.stdout.write(f"{written}\n")


def read_reports(
    database: str | None,
    threats: Sequence[str | None],
    mode: str,
    suite: str,
    order: str | None = None,
) -> list[dict[str, Any]]:
    """The report of each threat model as JSON values; None: the first in the database."""
    from bench.results.fast_suite import mode_of_suite, suite_named
    from bench.results.json_report import json_report
    from bench.store import Store
    from bench.store.damage import explained_damage

    chosen = suite_named(suite) if suite else None
    mode = mode_of_suite(suite, mode)
    with explained_damage(database), Store.open(database, read_only=True) as store:
        return [json_report(store, threat, mode, chosen, order) for threat in threats]


def print_reports(reports: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Write reports to stdout: as tables, or the first one as JSON."""
    from rich.console import Console

    from bench.results.text_report import text_report

    if as_json:
        jsonlib.dump(reports[0], sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    console = Console()
    for document in reports:
        console.print(text_report(document))


@export.command("outcomes")
def export_outcomes(
    out: Annotated[Path, typer.Option(help="A CSV file.")],
    threat: ThreatModelName = None,
    mode: Mode = "full",
    order: ExampleOrder = None,
    db: Database = None,
) -> None:
    """Write one row per defense, attack and example."""
    from bench.results import export as exporter
    from bench.store import Store
    from bench.store.damage import explained_damage

    with explained_damage(db), Store.open(db, read_only=True) as store:
        print(exporter.write_outcomes(store, threat, out, mode, order).sentence, file=sys.stderr)
        print(f"root {store.root()}", file=sys.stderr)


@export.command("images")
def export_images(
    out: Annotated[Path, typer.Option(help="A safetensors file.")],
    defense: Annotated[str, typer.Option(help="A defense.")],
    attack: Annotated[str, typer.Option(help="An attack.")],
    threat: ThreatModelName = None,
    mode: Mode = "full",
    order: ExampleOrder = None,
    db: Database = None,
) -> None:
    """Write the adversarial examples of one cell, each with the index of its clean image."""
    from bench.results import export as exporter
    from bench.store import Store
    from bench.store.damage import explained_damage

    with explained_damage(db), Store.open(db, read_only=True) as store:
        written = exporter.write_images(store, threat, defense, attack, out, mode, order)
    print(written.sentence, file=sys.stderr)


def leaderboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 8501,
    db: Database = None,
    open_browser: OpenBrowser = True,
    export: ExportFolder = None,
    allow_host: AllowedHosts = None,
) -> None:
    """Serve the leaderboard of a database, or write its pages as plain files.

    \f
    Raises typer.Exit with the exit code of the server.
    """
    from bench.cli.serve import serve

    raise typer.Exit(serve(host, port, db, open_browser, export, allow_host or ()))


def _all_cards(allow_unsandboxed: bool) -> ListedCards:
    """The cards of all plugins; submitted code that may run here is loaded at each call."""
    if allow_unsandboxed:
        return _load_cards(allow_unsandboxed=True)
    return indexed_cards(_load_cards)


def _load_cards(*, allow_unsandboxed: bool = False) -> ListedCards:
    from bench.registry.registry import Registry

    registry = Registry.load(allow_unsandboxed=allow_unsandboxed)
    return ListedCards(tuple(registry.cards()), tuple(registry.problems))

"""`bench list`, `show`, `report`, `export`, `leaderboard`: whatever only reads."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import AsJson, Database, Mode, Unsandboxed, print_json, url
from bench.core.cards import Card
from bench.core.errors import BenchError
from bench.results import json_report

KINDS = ("attacks", "defenses", "threats", "datasets", "certifiers", "diagnostics")
LISTS = (*KINDS, "suites", "submissions")
export = typer.Typer(help="Write outcomes or images to a file.", no_args_is_help=True)


def enter(app: typer.Typer) -> None:
    """Offer these commands."""
    app.command("list")(listed)
    app.command()(show)
    app.command()(report)
    app.command()(leaderboard)
    app.add_typer(export, name="export")


def listed(
    kind: Annotated[str, typer.Argument(help=", ".join(LISTS))],
    json: AsJson = False,
    db: Database = None,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """List what is there, whoever offers it; or where each submission stands."""
    if kind == "submissions":
        submissions(url(db), as_json=json)
        return
    if kind == "suites":
        suites(as_json=json)
        return
    if kind not in KINDS:
        raise BenchError(f"bench list came with {kind!r}; use one of {', '.join(LISTS)}.")
    cards, problems = _cards(kind[:-1], allow_unsandboxed)
    for problem in problems:
        print(f"refused: {problem}", file=sys.stderr)
    if json:
        print_json({"items": [asdict(card) for card in cards]})
        return
    width = max((len(card.name) for card in cards), default=0)
    for card in cards:
        print(f"{card.name:<{width}}  {card.origin:<11}  {card.summary}")


def submissions(database: str | None, *, as_json: bool) -> None:
    """Every submission with its state."""
    from bench.store import Store

    with Store.open(database, read_only=True) as store:
        entries = store.submissions()
    if as_json:
        print_json(
            {
                "items": [
                    {**entry._asdict(), "history": [step._asdict() for step in entry.history]}
                    for entry in entries
                ]
            }
        )
        return
    for entry in entries:
        print(f"{entry.name}  {entry.state}  {entry.reason}".rstrip())


def suites(*, as_json: bool) -> None:
    """Every named battery of attacks, by the perturbation sets it covers."""
    from bench.threats.suites import SUITES

    if as_json:
        print_json({"items": [asdict(suite) for suite in SUITES.values()]})
        return
    for suite in SUITES.values():
        print(f"{suite.name}  {suite.summary}")
        for norm, attacks in suite.attacks.items():
            print(f"  {norm}: {', '.join(attacks)}")


def show(
    name: Annotated[str, typer.Argument(help="Any plugin's name.")],
    json: AsJson = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Tell all that a plugin says of itself."""
    found = [c for kind in KINDS for c in _cards(kind[:-1], allow_unsandboxed)[0] if c.name == name]
    if not found:
        raise BenchError(
            f"nothing is named {name!r}; `bench list attacks` and the like tell names."
        )
    if json:
        print_json({"items": [asdict(card) for card in found]})
        return
    for card in found:
        print(f"{card.kind} {card.name} ({card.origin})\n{card.summary}\n{card.cite}".strip())
        for key, value in card.detail.items():
            print(f"  {key}: {jsonlib.dumps(value)}")


def report(
    threat: Annotated[str | None, typer.Option(help="A board; the first one by default.")] = None,
    mode: Mode = "full",
    suite: Annotated[
        str, typer.Option(help="Add the figure over the attacks of this suite alone.")
    ] = "",
    db: Database = None,
    json: AsJson = False,
) -> None:
    """Print a board: its ranking, its matrix, its flags."""
    tell(url(db), [threat], mode, suite, as_json=json)


def tell(
    database: str | None, threats: Sequence[str | None], mode: str, suite: str, *, as_json: bool
) -> None:
    """Boards on stdout: tables, or the JSON of the first."""
    from rich.console import Console

    from bench.results.text_report import text_report
    from bench.store import Store
    from bench.threats.suites import find_suite as named

    battery = named(suite) if suite else None
    with Store.open(database, read_only=True) as store:
        reports = [json_report.json_report(store, threat, mode, battery) for threat in threats]
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
    threat: Annotated[str | None, typer.Option()] = None,
    mode: Mode = "full",
    db: Database = None,
) -> None:
    """One row for each defense, attack and example."""
    from bench.results import export as exporter
    from bench.store import Store

    with Store.open(url(db), read_only=True) as store:
        print(exporter.outcomes(store, threat, out, mode).sentence, file=sys.stderr)


@export.command("images")
def export_images(
    out: Annotated[Path, typer.Option(help="A safetensors file.")],
    defense: Annotated[str, typer.Option()],
    attack: Annotated[str, typer.Option()],
    threat: Annotated[str | None, typer.Option()] = None,
    mode: Mode = "full",
    db: Database = None,
) -> None:
    """The adversarial images of one cell, with the item of each."""
    from bench.results import export as exporter
    from bench.store import Store

    with Store.open(url(db), read_only=True) as store:
        print(exporter.images(store, threat, defense, attack, out, mode).sentence, file=sys.stderr)


def leaderboard(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8501,
    db: Database = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open")] = True,
    export: Annotated[Path | None, typer.Option(help="Write plain HTML there and stop.")] = None,
) -> None:
    """Serve the pages of a database, or write them as plain files."""
    from bench.cli.serve import serve

    raise typer.Exit(serve(host, port, url(db), open_browser, export))


def _cards(kind: str, allow_unsandboxed: bool) -> tuple[list[Card], Sequence[Any]]:
    from bench.registry.registry import Registry

    registry = Registry.load(allow_unsandboxed=allow_unsandboxed)
    return [card for card in registry.cards() if card.kind == kind], registry.problems

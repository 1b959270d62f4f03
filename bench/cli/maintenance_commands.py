"""`bench doctor`, `bench db`: whatever keeps the house in order."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, Database, print_json, url

database = typer.Typer(help="Check, back up or upgrade the database.", no_args_is_help=True)


def enter(app: typer.Typer) -> None:
    """Offer these commands."""
    app.command()(doctor)
    app.add_typer(database, name="db")


def doctor(db: Database = None, json: AsJson = False) -> None:
    """Tell whether this machine is fit to play."""
    from bench.cli.doctor import examine_machine

    findings = examine_machine(url(db))
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{'fit' if finding.fit else 'UNFIT':<6}{finding.name:<12}{finding.sentence}")
    if not all(finding.fit for finding in findings):
        raise typer.Exit(5)


@database.command("check")
def check(db: Database = None) -> None:
    """Hold every stored digest and reference against what is there."""
    from bench.store import Store

    with Store.open(url(db), read_only=True) as store:
        problems = store.check()
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(4)
    print("every promise of the database holds", file=sys.stderr)


@database.command("backup")
def backup(path: Annotated[Path, typer.Argument(help="A new file.")], db: Database = None) -> None:
    """Copy the database while others may write."""
    from bench.store import Store

    with Store.open(url(db), read_only=True) as store:
        store.backup(path)
    print(path)


@database.command("upgrade")
def upgrade(db: Database = None) -> None:
    """Bring the tables to this program's revision; a backup is made first."""
    from bench.store import Store

    with Store.open(url(db)) as store:
        print(store.url)

"""Commands that check the machine and the database: `bench doctor` and `bench db`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, Database, database_url, print_json

database = typer.Typer(help="Check, back up or upgrade the database.", no_args_is_help=True)


def add_maintenance_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(doctor)
    app.add_typer(database, name="db")


def doctor(db: Database = None, json: AsJson = False) -> None:
    """Check whether this machine can run evaluations.

    \f
    Raises typer.Exit with code 5 where a finding is not fit.
    """
    from bench.cli.doctor import examine_machine

    findings = examine_machine(database_url(db))
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{'fit' if finding.fit else 'UNFIT':<6}{finding.name:<12}{finding.sentence}")
    if not all(finding.fit for finding in findings):
        raise typer.Exit(5)


@database.command("check")
def check_database(db: Database = None) -> None:
    """Recompute every stored digest and check every reference of the database.

    \f
    Raises typer.Exit with code 4 where a problem was found.
    """
    from bench.store import Store

    with Store.open(database_url(db), read_only=True) as store:
        problems = store.check()
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(4)
    print("the database is intact: every stored digest and reference is correct", file=sys.stderr)


@database.command("backup")
def back_up_database(
    path: Annotated[Path, typer.Argument(help="A new file.")], db: Database = None
) -> None:
    """Copy the database; other processes may write to it meanwhile."""
    from bench.store import Store

    with Store.open(database_url(db), read_only=True) as store:
        store.backup(path)
    print(path)


@database.command("upgrade")
def upgrade_database(db: Database = None) -> None:
    """Upgrade the tables to the revision of this program; a backup is made first."""
    from bench.store import Store

    with Store.open(database_url(db)) as store:
        print(store.url)

"""Commands that check the machine and the database: `bench doctor` and `bench db`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, Database, print_json

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

    findings = examine_machine(db)
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{'fit' if finding.fit else 'UNFIT':<6}{finding.name:<12}{finding.sentence}")
    if not all(finding.fit for finding in findings):
        raise typer.Exit(5)


@database.command("check")
def check_integrity(
    db: Database = None,
    root: Annotated[
        str | None, typer.Option(help="A published root, which the results must have.")
    ] = None,
) -> None:
    """Compute every stored key and digest anew, and print the root of all results.

    \f
    Raises typer.Exit with code 4 where a problem was found.
    """
    from bench.store import Store, damage

    found = damage.check_database(db)
    for fault in found:
        print(fault.sentence)
    if found:
        print(f"{len(found)} faults: `bench db repair` removes what is damaged", file=sys.stderr)
        raise typer.Exit(4)
    with Store.open(db, read_only=True) as store:
        own = store.root()
    if root is not None and root.lower() != own:
        print(f"root: {own}, the published one is {root}: the results are not those")
        raise typer.Exit(4)
    print("the database is intact: every stored key and digest is correct", file=sys.stderr)
    print(f"root {own}", file=sys.stderr)


@database.command("repair")
def repair_database(
    db: Database = None,
    backup: Annotated[bool, typer.Option(help="Copy the database before.")] = True,
) -> None:
    """Remove what is damaged, after a backup; `bench run` evaluates it again."""
    from bench.store.repair import repair

    done = repair(db, backup=backup)
    if done.backup is not None:
        print(f"the database as it was: {done.backup}", file=sys.stderr)
    for line in [*done.removed.sentences, *(fault.sentence for fault in done.left)]:
        print(line)
    if not done.removed.sentences and not done.left:
        print("nothing had to be removed", file=sys.stderr)
    else:
        print("run the same `bench run` again: it evaluates what is missing", file=sys.stderr)


@database.command("backup")
def back_up_database(
    path: Annotated[Path, typer.Argument(help="A new file.")], db: Database = None
) -> None:
    """Copy the database; other processes may write to it meanwhile."""
    from bench.store import Store

    with Store.open(db, read_only=True) as store:
        store.backup(path)
    print(path)


@database.command("upgrade")
def upgrade_database(db: Database = None) -> None:
    """Upgrade the tables to the revision of this program; a backup is made first."""
    from bench.store import Store

    with Store.open(db) as store:
        print(store.url)

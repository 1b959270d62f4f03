"""`bench new`, `check`, `submit`: whatever a plugin's author needs."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, Database, Unsandboxed, print_json, url


def enter(app: typer.Typer) -> None:
    """Offer these commands."""
    app.command()(new)
    app.command()(check)
    app.command()(submit)


def new(
    kind: Annotated[str, typer.Argument(help="attack, defense or threat.")],
    name: Annotated[str, typer.Argument(help="a-z, 0-9, '.', '_', '-'.")],
    folder: Annotated[Path, typer.Option(help="Where the plugin's folder is made.")] = Path(),
) -> None:
    """Write a plugin that already runs; make it yours from there."""
    from bench.submissions.templates import write_template as write

    place = write(kind, name, folder)
    print(place)
    print(f"next: bench check {place}", file=sys.stderr)


def check(
    plugin: Annotated[str, typer.Argument(help="A plugin's folder or file, or a known name.")],
    json: AsJson = False,
) -> None:
    """Hold a plugin against its contract. Its code runs in this process, with your rights."""
    from bench.contract.runner import run_checks
    from bench.evaluation.launcher import set_deterministic

    set_deterministic()  # it may train
    results = run_checks(plugin, train=True)
    if json:
        print_json({"checks": [asdict(result) for result in results]})
    else:
        for result in results:
            print(f"{result.outcome:<14}  {result.check:<40}  {result.sentence}".rstrip())
    counts = Counter(str(result.outcome) for result in results)
    print(", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())), file=sys.stderr)
    if counts["fail"]:
        raise typer.Exit(4)


def submit(
    path: Annotated[Path, typer.Argument(help="An entry's folder, or a zip of it.")],
    db: Database = None,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Hand in an entry: card, plugin and weights are validated; the next run plays it."""
    from bench.evaluation.launcher import set_deterministic
    from bench.store import Store
    from bench.submissions.intake import take_in as take

    set_deterministic()  # it may train
    with Store.open(url(db)) as store:
        taken = take(path, store, allow_unsandboxed=allow_unsandboxed)
    checked = "its contract was checked" if taken.checked else "its contract waits for the next run"
    print(f"{taken.kind} {taken.name} {taken.digest[:12]}: taken in; {checked}.")

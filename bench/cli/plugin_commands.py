"""Commands for authors of plugins: `bench new`, `check` and `submit`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, Database, Unsandboxed, database_url, print_json
from bench.contract.check import CheckOutcome, CheckResult

PathOrName = Annotated[
    str, typer.Argument(help="Folder or file of a plugin, or a registered name.")
]


def add_plugin_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(new)
    app.command("check")(check_plugin)
    app.command()(submit)


def new(
    kind: Annotated[str, typer.Argument(help="attack, defense or threat.")],
    name: Annotated[str, typer.Argument(help="a-z, 0-9, '.', '_', '-'.")],
    folder: Annotated[Path, typer.Option(help="Where the plugin's folder is made.")] = Path(),
) -> None:
    """Write a plugin that runs as it is, as a starting point for your own."""
    from bench.submissions.templates import write_template

    place = write_template(kind, name, folder)
    print(place)
    print(f"next: bench check {place}", file=sys.stderr)


def check_plugin(
    plugin: PathOrName,
    json: AsJson = False,
) -> None:
    """Check a plugin against its contract. Its code runs in this process, with your permissions.

    \f
    Raises typer.Exit with code 4 where a check fails.
    """
    from bench.contract.runner import run_checks
    from bench.evaluation.launcher import set_deterministic

    set_deterministic()  # it may train
    results = run_checks(plugin, train=True)
    print_checks(results, as_json=json)
    if any(result.outcome is CheckOutcome.FAIL for result in results):
        raise typer.Exit(4)


def print_checks(results: Sequence[CheckResult], *, as_json: bool) -> None:
    """Write results of checks to stdout, and their number by outcome to stderr."""
    if as_json:
        print_json({"checks": [asdict(result) for result in results]})
    else:
        for result in results:
            print(f"{result.outcome:<14}  {result.check:<40}  {result.sentence}".rstrip())
    counts = Counter(str(result.outcome) for result in results)
    print(", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())), file=sys.stderr)


def submit(
    path: Annotated[Path, typer.Argument(help="A submission's folder, or a zip file of it.")],
    db: Database = None,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Submit a plugin: card, code and weights are validated; the next run evaluates it."""
    from bench.evaluation.launcher import set_deterministic
    from bench.store import Store
    from bench.submissions.intake import accept_submission

    set_deterministic()  # it may train
    with Store.open(database_url(db)) as store:
        accepted = accept_submission(path, store, allow_unsandboxed=allow_unsandboxed)
    state = "was checked" if accepted.checked else "will be checked by the next run"
    digest = accepted.digest[:12]
    print(f"{accepted.kind} {accepted.name} {digest}: accepted; its contract {state}.")

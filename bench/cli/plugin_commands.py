"""Commands for authors of plugins: `bench new`, `check` and `submit`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, Database, Unsandboxed, print_json
from bench.contract.check import CheckOutcome, CheckResult
from bench.core.errors import BenchError

PathOrName = Annotated[
    str, typer.Argument(help="Folder or file of a plugin, or a registered name.")
]


def add_plugin_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(new)
    app.command("check")(check_plugin)
    app.command()(submit)


def new(
    kind: Annotated[str, typer.Argument(help="attack, defense, threat or challenge.")],
    name: Annotated[str, typer.Argument(help="a-z, 0-9, '.', '_', '-'.")],
    folder: Annotated[Path, typer.Option(help="Where the plugin's folder is made.")] = Path(),
    size: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Of a challenge: height and width of its images."),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Of a challenge: the largest number of images.")
    ] = None,
) -> None:
    """Write a plugin that runs as it is, as a starting point for your own.

    A challenge is a package with a data set and threat models. Its images are read from the
    subfolder of its name in the folder that BENCH_DATA names.
    """
    from bench.submissions.templates import CHALLENGE, write_template

    if kind == CHALLENGE:
        from bench.submissions.challenge import write_challenge

        place = write_challenge(name, folder, size or 224, examples or 1000)
        following = f"uv pip install {place.absolute()}"
    elif size or examples:
        raise BenchError(f"--size and --examples are options of a {CHALLENGE}; leave them out.")
    else:
        place = write_template(kind, name, folder)
        following = f"bench check {place}"
    print(place)
    print(f"next: {following}", file=sys.stderr)


def check_plugin(
    plugin: PathOrName,
    json: AsJson = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Check a plugin against its contract.

    Code of a waiting submission runs in a sandboxed process. Any other file or folder is imported
    into this process, with your permissions.

    \f
    Raises typer.Exit with code 4 where a check fails, 5 where data or weights are missing.
    """
    from bench.contract.runner import run_checks
    from bench.evaluation.launcher import set_deterministic

    set_deterministic()  # it may train
    results = run_checks(plugin, train=True, sandbox_waiting=not allow_unsandboxed)
    print_checks(results, as_json=json)
    if any(result.outcome is CheckOutcome.FAIL for result in results):
        raise typer.Exit(4)
    if any(result.outcome is CheckOutcome.NOT_RUN for result in results):
        raise typer.Exit(5)


def print_checks(results: Sequence[CheckResult], *, as_json: bool) -> None:
    """Write results of checks to stdout, and their number by outcome to stderr."""
    if as_json:
        print_json({"checks": [asdict(result) for result in results]})
    else:
        for names, result in _grouped(results):
            print(f"{result.outcome:<14}  {names:<40}  {result.sentence}".rstrip())
    counts = Counter(str(result.outcome) for result in results)
    print(", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())), file=sys.stderr)


def _grouped(results: Sequence[CheckResult]) -> Iterator[tuple[str, CheckResult]]:
    """Each result with the name of its check; those not run for one reason as one, at its first."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        if result.outcome is CheckOutcome.NOT_RUN:
            key = (result.kind, result.name, result.sentence)
            alike.setdefault(key, []).append(result.check)
    for result in results:
        key = (result.kind, result.name, result.sentence)
        if result.outcome is not CheckOutcome.NOT_RUN:
            yield result.check, result
        elif key in alike:
            yield ", ".join(alike.pop(key)), result


def submit(
    paths: Annotated[
        list[Path],
        typer.Argument(help="A submission's folder, a zip file of it, or a folder of those."),
    ],
    db: Database = None,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Submit plugins: card, code and weights are validated; the next run evaluates them.

    \f
    Raises BenchError where the only submission is rejected, typer.Exit with code 4 where one of
    several is; the others are accepted nevertheless.
    """
    from bench.evaluation.launcher import set_deterministic
    from bench.store import Store
    from bench.submissions.intake import AcceptedSubmission, accept_submissions, submission_paths

    set_deterministic()  # it may train
    found = submission_paths(paths)
    accepted = 0
    with Store.open(db) as store:
        for path, result in accept_submissions(found, store, allow_unsandboxed=allow_unsandboxed):
            if isinstance(result, AcceptedSubmission):
                accepted += 1
                state = "was checked" if result.checked else "will be checked by the next run"
                digest = result.digest[:12]
                print(f"{result.kind} {result.name} {digest}: accepted; its contract {state}.")
            elif len(found) == 1:
                raise result
            else:
                print(f"{path.name}: rejected; {result}")
    if len(found) > 1:
        print(f"{accepted} accepted, {len(found) - accepted} rejected", file=sys.stderr)
    if accepted < len(found):
        raise typer.Exit(4)

"""Commands that compute: `bench run`, `bench train` and `bench reproduce`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Database, Mode, Unsandboxed, database_url, print_json
from bench.cli.read_commands import print_reports, read_reports

if TYPE_CHECKING:
    from bench.evaluation.launcher import MatrixRun

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
KeepImages = Annotated[
    str, typer.Option(help="Adversarial examples to store: none, sample or all.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print one summary line and nothing else.")]

Mixed = Annotated[bool, typer.Option("--mixed", help="Use bfloat16 where torch supports it.")]
CellKey = Annotated[
    str, typer.Argument(help="Key of a finished cell, or the first characters of it.")
]


def add_run_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(run)
    app.command("train")(train_defense)
    app.command("reproduce")(reproduce_cell)


def run(
    threat: Annotated[
        list[str] | None, typer.Option(help="A threat model; the option can be repeated.")
    ] = None,
    defense: Annotated[list[str] | None, typer.Option(help="A defense, or `all`.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="An attack, or `all`.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Use the first N examples.")] = None,
    seed: Annotated[
        int, typer.Option(min=-(2**63), max=2**63 - 1, help="Seed of all random numbers.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Examples on the device at once.")] = 128,
    mode: Mode = "full",
    suite: Annotated[
        str, typer.Option(help="An attack suite; `bench list suites` shows all.")
    ] = "",
    numeric: Annotated[
        str, typer.Option(help="float32; or fast or bfloat16 where the defense allows it.")
    ] = "float32",
    certify: Annotated[str, typer.Option(help="Certifiers to run: none, quick or all.")] = "quick",
    keep_images: KeepImages = "sample",
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes on this machine.")] = 1,
    db: Database = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    json: AsJson = False,
    quiet: Quiet = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Evaluate every attack against every defense; resumes where the last run stopped.

    \f
    Raises typer.Exit with code 3 where cells failed.
    """
    from bench.evaluation.launcher import MatrixRun
    from bench.evaluation.plan import Selection

    matrix_run = MatrixRun(
        selection=Selection(
            tuple(threat or ()), tuple(defense or ()), tuple(attack or ()), examples, seed, mode,
            suite,
        ),
        url=database_url(db), device=device, batch=batch, workers=workers, keep_images=keep_images,
        allow_unsandboxed=allow_unsandboxed, quiet=quiet, numeric=numeric, certify=certify,
    )  # fmt: skip
    if dry_run:
        print_plan(matrix_run.plan(), as_json=json)
        return
    failed = matrix_run.run()
    reports = read_reports(matrix_run.url, _threat_names(matrix_run), mode, suite)
    if quiet and not json:
        print(summary_line(reports))
    else:
        print_reports(reports, as_json=json)
    if not quiet:
        print(f"next: bench leaderboard{f' --db {db}' if db else ''}", file=sys.stderr)
    if failed:
        print(f"bench: {failed} cells failed; `bench report` lists the reasons.", file=sys.stderr)
        raise typer.Exit(3)


def print_plan(plan: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Write the cells of a run to stdout, one line each or as JSON."""
    if as_json:
        print_json({"cells": plan})
        return
    for row in plan:
        print("\t".join(str(row[name]) for name in ("threat", "defense", "attack", "state")))


def summary_line(reports: Sequence[Mapping[str, Any]]) -> str:
    """One line on the leaderboards of a run: defenses and cells by state.

    >>> cells = [{"state": "done"}, {"state": "done"}, {"state": "failed"}]
    >>> summary_line([{"threat": {"name": "digits-linf"}, "ranking": [{}], "matrix": cells}])
    'digits-linf: 1 defense; 2 cells done, 1 failed'
    """
    states = Counter(str(cell["state"]) for report in reports for cell in report["matrix"])
    names = ", ".join(report["threat"]["name"] for report in reports)
    defenses = max((len(report["ranking"]) for report in reports), default=0)
    others = [f"{states[state]} {state}" for state in sorted(states) if state != "done"]
    counts = ", ".join([f"{states['done']} cells done", *others])
    return f"{names}: {defenses} defense{'' if defenses == 1 else 's'}; {counts}"


def _threat_names(matrix_run: MatrixRun) -> list[str]:
    return [threat.name for threat in matrix_run.threats()]


def train_defense(
    name: Annotated[str, typer.Argument(help="A defense with a training recipe.")],
    dataset: Annotated[str | None, typer.Option(help="One of its data sets.")] = None,
    device: Device = "auto",
    mixed: Mixed = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Train a defense by its recipe; resumes where an interrupted training stopped."""
    from bench.evaluation.launcher import chosen_device, load_registry, set_deterministic
    from bench.training.state import format_epoch
    from bench.training.tasks import train_with_teacher

    set_deterministic()  # as `bench run` does, or it would train other weights
    registry = load_registry(allow_unsandboxed)
    offer = registry.find("defense", name)
    data = registry.find("dataset", dataset or offer.value.datasets[0]).value
    digest = train_with_teacher(
        registry, name, data, device=chosen_device(device), mixed=mixed,
        progress=lambda epoch: print(format_epoch(epoch), file=sys.stderr),
    )  # fmt: skip
    print(digest)


def reproduce_cell(
    cell: CellKey,
    db: Database = None,
    device: Device = "auto",
    allow_unsandboxed: Unsandboxed = False,
    json: AsJson = False,
) -> None:
    """Evaluate a finished cell again and compare the outcome of every example.

    \f
    Raises typer.Exit with code 4 where an outcome differs.
    """
    from bench.evaluation.reproduce import reproduce

    result = reproduce(cell, database_url(db), device, allow_unsandboxed)
    if json:
        print_json(result)
    else:
        print(result["sentence"])
    if not result["same"]:
        raise typer.Exit(4)

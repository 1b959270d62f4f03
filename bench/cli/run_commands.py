"""Commands that compute: `bench run`, `bench train` and `bench reproduce`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Batch, Database, Mode, Order, Unsandboxed, print_json
from bench.cli.radii_tables import print_radii_of_run
from bench.cli.read_commands import print_reports, read_reports
from bench.cli.variant_options import (
    AttackSettings,
    NormName,
    Radii,
    threat_variants_of,
    variants_of,
)
from bench.core.cells import BALANCED_ORDER
from bench.core.errors import BenchError
from bench.results.fast_suite import mode_of_suite

if TYPE_CHECKING:
    from bench.evaluation.launcher import MatrixRun

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
ThreatNames = Annotated[
    list[str] | None, typer.Option(help="A threat model; the option can be repeated.")
]
DefenseNames = Annotated[list[str] | None, typer.Option(help="A defense, or `all`.")]
AttackNames = Annotated[
    list[str] | None, typer.Option(help="An attack, a pattern such as 'pgd*', or `all`.")
]
TracedExample = Annotated[
    int | None,
    typer.Option("--trace", min=0, help="Print each step on the example of this number instead."),
]
TraceFile = Annotated[Path | None, typer.Option(help="A CSV file for the steps of --trace.")]
KeepImages = Annotated[
    str, typer.Option(help="Adversarial examples to store: none, sample or all.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Worker processes; default: one for each CUDA device, else for each core as far as "
        "memory and open cells allow.",
    ),
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
    threat: ThreatNames = None,
    defense: DefenseNames = None,
    attack: AttackNames = None,
    set_: AttackSettings = None,
    eps: Radii = "",
    norm: NormName = "",
    examples: Annotated[int | None, typer.Option(min=1, help="Use the first N examples.")] = None,
    seed: Annotated[
        int, typer.Option(min=-(2**63), max=2**63 - 1, help="Seed of all random numbers.")
    ] = 0,
    batch: Batch = None,
    order: Order = BALANCED_ORDER,
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
    workers: Workers = None,
    db: Database = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    json: AsJson = False,
    quiet: Quiet = False,
    trace: TracedExample = None,
    trace_file: TraceFile = None,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Evaluate every attack against every defense; resumes where the last run stopped.

    \f
    Raises typer.Exit with code 3 where cells failed.
    """
    from bench.contract.batch_dependence import batch_dependence
    from bench.evaluation.launcher import MatrixRun
    from bench.evaluation.plan import Selection

    chosen = (*(attack or ()), *variants_of(set_ or ()))
    matrix_run = MatrixRun(
        selection=Selection(
            tuple(threat_variants_of(threat or (), eps, norm)), tuple(defense or ()),
            chosen, examples, seed, mode_of_suite(suite, mode, chosen), suite, order,
        ),
        url=db, device=device, batch=batch, workers=workers, keep_images=keep_images,
        allow_unsandboxed=allow_unsandboxed, quiet=quiet, numeric=numeric, certify=certify,
        attack_check=batch_dependence,
    )  # fmt: skip
    if trace is not None or trace_file is not None:
        print_trace(matrix_run, trace or 0, trace_file, as_json=json)
        return
    if dry_run:
        print_plan(matrix_run, as_json=json)
        return
    failed = matrix_run.run()
    _print_results(matrix_run, (threat or (), eps, norm), as_json=json)
    _print_end(db, failed, quiet=quiet)


def _print_radii(url: str | None, threats: Sequence[str], eps: str, norm: str, order: str) -> bool:
    """Print the table over the radii of a run; False where no attack is done within two."""
    try:
        print_radii_of_run(url, threats, eps, norm, order)
    except BenchError:
        return False
    return True


def _print_results(
    matrix_run: MatrixRun, varied: tuple[Sequence[str], str, str], *, as_json: bool
) -> None:
    """Print the reports of a run, one line on them, or the table over its radii.

    `varied`: the options `--threat`, `--eps` and `--norm`.
    """
    chosen, quiet, (threats, eps, norm) = matrix_run.selection, matrix_run.quiet, varied
    tabled = "," in eps and chosen.mode == "full" and not (as_json or quiet)
    if tabled and _print_radii(matrix_run.url, threats, eps, norm, chosen.order):
        return
    names = _threat_names(matrix_run)
    reports = read_reports(matrix_run.url, names, chosen.mode, chosen.suite, chosen.order)
    if quiet and not as_json:
        print(summary_line(reports))
    else:
        print_reports(reports, as_json=as_json)


def _print_end(db: str | None, failed: int, *, quiet: bool) -> None:
    """Say what comes next; raises typer.Exit with code 3 where cells failed."""
    if not quiet:
        print(f"next: bench leaderboard{f' --db {db}' if db else ''}", file=sys.stderr)
    if failed:
        print(f"bench: {failed} cells failed; `bench report` lists the reasons.", file=sys.stderr)
        raise typer.Exit(3)


def print_trace(matrix_run: MatrixRun, example: int, file: Path | None, *, as_json: bool) -> None:
    """Write the steps of the run's one attack on one example to stdout, and to a CSV file."""
    from bench.evaluation.launcher import chosen_device, load_registry, set_deterministic
    from bench.evaluation.trace import trace_attack, write_trace

    set_deterministic()
    registry = load_registry(matrix_run.allow_unsandboxed, matrix_run.selection)
    device = chosen_device(matrix_run.device)
    steps = trace_attack(registry, matrix_run.selection, example, device)
    if file is not None:
        write_trace(steps, file)
    if as_json:
        print_json({"example": example, "steps": [step.record() for step in steps]})
        return
    print("restart  step      loss    margin  distance  label  queries")
    for step in steps:
        figures = f"{step.loss:>8.4f}  {step.margin:>8.4f}  {step.distance:>8.5f}"
        marks = (("success", step.success), ("success at a query", step.queried_success),
                 ("outside the set", not step.inside))  # fmt: skip
        said = "  ".join([str(step.label).rjust(5), str(step.queries).rjust(7),
                          *(name for name, holds in marks if holds)])  # fmt: skip
        print(f"{step.restart:>7}  {step.step:>4}  {figures}  {said}")


def print_plan(matrix_run: MatrixRun, *, as_json: bool) -> None:
    """Write the cells of a run to stdout, one line each or as JSON; their cost to stderr."""
    from bench.evaluation.run_plan import forecast

    plan = matrix_run.plan()
    expected = forecast(plan, matrix_run.device)
    if as_json:
        told = {**expected._asdict(), "workers": expected.workers._asdict()}
        print_json({"cells": plan, "forecast": told})
        return
    for row in plan:
        print("\t".join(str(row[name]) for name in ("threat", "defense", "attack", "state")))
    if not matrix_run.quiet:
        print(expected.sentence, file=sys.stderr)


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
    """Evaluate a finished cell again, store both results and compare every example.

    \f
    Raises typer.Exit with code 4 where a verdict differs.
    """
    from bench.evaluation.reproduce import reproduce

    result = reproduce(cell, db, device, allow_unsandboxed)
    if json:
        print_json(result)
    else:
        print(result["sentence"])
        for difference in result["differences"]:
            print(f"  {difference['sentence']}")
    if result["not_stored"]:
        print(f"bench: {result['not_stored']}", file=sys.stderr)
    if not result["same"]:
        raise typer.Exit(4)

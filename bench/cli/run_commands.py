"""`bench run`, `bench train`, `bench reproduce`: whatever computes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench.cli.options import AsJson, Database, Mode, Unsandboxed, print_json, url
from bench.cli.read_commands import tell
from bench.core.errors import BenchError

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]


def enter(app: typer.Typer) -> None:
    """Offer these commands."""
    app.command()(run)
    app.command()(train)
    app.command()(reproduce)


def run(
    threat: Annotated[
        list[str] | None, typer.Option(help="A threat model; may be given again.")
    ] = None,
    defense: Annotated[list[str] | None, typer.Option(help="A defense, or `all`.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="An attack, or `all`.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="The first N examples.")] = None,
    seed: Annotated[
        int, typer.Option(min=-(2**63), max=2**63 - 1, help="Of all that is drawn.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Rows on the device at once.")] = 128,
    mode: Mode = "full",
    suite: Annotated[
        str, typer.Option(help="A battery of attacks, as `bench list suites` tells them.")
    ] = "",
    numeric: Annotated[
        str, typer.Option(help="float32, or fast or bfloat16 where a defense allows it.")
    ] = "float32",
    certify: Annotated[str, typer.Option(help="none, quick or all: who may prove.")] = "quick",
    keep_images: Annotated[str, typer.Option(help="none, sample or all.")] = "sample",
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    db: Database = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Play every attack against every defense; go on where the last run stopped."""
    from bench.evaluation.launcher import MatrixRun
    from bench.evaluation.plan import Selection

    matrix_run = MatrixRun(
        selection=Selection(
            tuple(threat or ()), tuple(defense or ()), tuple(attack or ()), examples, seed, mode,
            suite,
        ),
        url=url(db), device=device, batch=batch, workers=workers, keep_images=keep_images,
        allow_unsandboxed=allow_unsandboxed, quiet=quiet, numeric=numeric, certify=certify,
    )  # fmt: skip
    if dry_run:
        plan = matrix_run.plan()
        if json:
            print_json({"cells": plan})
        else:
            for row in plan:
                print(
                    "\t".join(str(row[name]) for name in ("threat", "defense", "attack", "state"))
                )
        return
    failed = matrix_run.run()
    boards = [threat.name for threat in matrix_run.threats()]
    tell(matrix_run.url, boards, mode, suite, as_json=json)
    option = f" --db {db}" if db else ""
    print(f"next: bench leaderboard{option}", file=sys.stderr)
    if failed:
        print(f"bench: {failed} cells failed; `bench report` tells why.", file=sys.stderr)
        raise typer.Exit(3)


def train(
    name: Annotated[str, typer.Argument(help="A defense with a recipe.")],
    dataset: Annotated[str | None, typer.Option(help="One of its data sets.")] = None,
    device: Device = "auto",
    mixed: Annotated[bool, typer.Option("--mixed", help="bfloat16 where torch allows.")] = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Train a defense by its recipe, or go on where a killed training stopped."""
    from bench.evaluation.launcher import chosen_device, load_registry, set_deterministic
    from bench.training.state import format_epoch
    from bench.training.tasks import train_with_teacher

    set_deterministic()  # the weights that `bench run` would make
    registry = load_registry(allow_unsandboxed)
    offer = registry.find("defense", name)
    data = registry.find("dataset", dataset or offer.value.datasets[0]).value
    digest = train_with_teacher(
        registry, name, data, device=chosen_device(device), mixed=mixed,
        progress=lambda epoch: print(format_epoch(epoch), file=sys.stderr),
    )  # fmt: skip
    print(digest)


def reproduce(
    cell: Annotated[str, typer.Argument(help="The key of a finished cell, or its beginning.")],
    db: Database = None,
    device: Device = "auto",
    allow_unsandboxed: Unsandboxed = False,
    json: AsJson = False,
) -> None:
    """Play one finished cell again and compare every verdict."""
    from bench.evaluation.reproduce import reproduce

    result = reproduce(cell, url(db), device, allow_unsandboxed)
    if json:
        print_json(result)
    else:
        print(result["sentence"])
    if not result["same"]:
        raise typer.Exit(BenchError.exit_code + 2)

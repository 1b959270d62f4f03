"""Which targets hold here: python -m tests.benchmarks [--target T1]... [--json OUT]."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.quicken import has_bfloat16
from bench.records import UnfitError
from tests.benchmarks import strength, table, targets
from tests.benchmarks.row import Row, Scale, Target

OUT = Console(width=200)


def main(
    target: Annotated[list[str] | None, typer.Option(help="T1 or T1.bf16; all without.")] = None,
    json: Annotated[Path | None, typer.Option(help="Rows; those in it are kept.")] = None,
    pairs: Annotated[int | None, typer.Option(help="At most so many pairs a target.")] = None,
    examples: Annotated[int | None, typer.Option(help="At most so many examples.")] = None,
    device: Annotated[str, typer.Option(help="cpu in CPU time, cuda in wall time.")] = "cpu",
    strong: Annotated[bool, typer.Option("--strength", help="Strength, not speed.")] = False,
) -> None:
    """Measure ours and the peers in one process; exit 1 where a target does not hold."""
    torch.set_num_threads(1)
    ready(device)
    known = wanted(target or [], device, strong)
    rows = measured(known, Scale(pairs, examples, device), json)
    OUT.print(table.drawn(rows), soft_wrap=True)
    raise typer.Exit(0 if all(row.holds for row in rows) else 1)


def wanted(names: list[str], device: str, strong: bool) -> list[Target]:
    """The chosen targets; a wrong name ends the program with a sentence."""
    try:
        return strength.chosen(names) if strong else targets.chosen(names, device)
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0])) from error


def ready(device: str) -> None:
    """The device must be here."""
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"{device} was asked for, and torch finds no CUDA device.")


def measured(known: list[Target], scale: Scale, path: Path | None) -> list[Row]:
    """A row for each target that can be measured here; the reason on the screen for the others."""
    done = table.load(path)
    rows = []
    for target in known:
        if target.key not in done:
            try:
                row = one(target, scale)
            except UnfitError as error:
                OUT.print(f"{target.key}: not measured. {error}")
                continue
            done[target.key] = row.fields()
            table.save(path, done)
        rows.append(table.row_of(done[target.key]))
    return rows


def one(target: Target, scale: Scale) -> Row:
    """Measure one target and say so."""
    if target.bfloat16 and not has_bfloat16(torch.device(scale.device)):
        raise UnfitError("This device has no bfloat16 instructions.")
    since = time.monotonic()
    row = target.measure(target, scale)
    figure = f"{row.ratio:.2f} (bar {target.bar})"
    told = f"{target.key}: {figure}, {'holds' if row.holds else 'does not hold'}"
    OUT.print(f"{told}, {time.monotonic() - since:.0f} s. {row.note}")
    return row


if __name__ == "__main__":
    typer.run(main)

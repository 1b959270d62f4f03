"""Which targets hold here: python -m tests.benchmarks [--target T1]... [--json OUT]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.core.errors import UnavailableError
from tests.benchmarks import table
from tests.benchmarks.row import Row, Scale
from tests.benchmarks.subprocess_pair import OUT, apart, chosen


def main(
    target: Annotated[list[str] | None, typer.Option(help="T1 or T1.bf16; all without.")] = None,
    json: Annotated[Path | None, typer.Option(help="Rows; those in it are kept.")] = None,
    pairs: Annotated[int | None, typer.Option(help="At most so many pairs a target.")] = None,
    examples: Annotated[int | None, typer.Option(help="At most so many examples.")] = None,
    device: Annotated[str, typer.Option(help="cpu in CPU time, cuda in wall time.")] = "cpu",
    strong: Annotated[bool, typer.Option("--strength", help="Strength, not speed.")] = False,
) -> None:
    """Measure ours beside the peers; exit 1 where a target does not hold."""
    ready(device)
    names = wanted(target or [], device, strong)
    rows = measured(names, Scale(pairs, examples, device), json, strong)
    OUT.print(table.drawn(rows), soft_wrap=True)
    raise typer.Exit(0 if all(row.holds for row in rows) else 1)


def wanted(names: list[str], device: str, strong: bool) -> list[str]:
    """The keys of the chosen targets; a wrong name ends the program with a sentence."""
    try:
        return [target.key for target in chosen(names, device, strong)]
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0])) from error


def ready(device: str) -> None:
    """The device must be here."""
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"{device} was asked for, and torch finds no CUDA device.")


def measured(names: list[str], scale: Scale, path: Path | None, strong: bool) -> list[Row]:
    """A row for each target that can be measured here; the reason on the screen for the others."""
    done = table.load(path)
    rows = []
    for name in names:
        if name not in done:
            try:
                row = apart(name, scale, strong)
            except UnavailableError as error:
                OUT.print(f"{name}: not measured. {error}")
                continue
            done[name] = row.fields()
            table.save(path, done)
        rows.append(table.row_of(done[name]))
    return rows


if __name__ == "__main__":
    typer.run(main)

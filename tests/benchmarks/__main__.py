"""Measures targets on this machine: python -m tests.benchmarks [--target T1]... [--json OUT]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.core.errors import UnavailableError
from tests.benchmarks import results_table
from tests.benchmarks.comparison import Scale, TargetResult
from tests.benchmarks.subprocess_run import OUT, in_subprocess, selected


def main(
    target: Annotated[list[str] | None, typer.Option(help="T1 or T1.bf16; default: all.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Results; targets in this file are not measured again.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="At most this many pairs per target.")] = None,
    examples: Annotated[int | None, typer.Option(help="At most this many examples.")] = None,
    device: Annotated[str, typer.Option(help="cpu (CPU time) or cuda (wall time).")] = "cpu",
    strong: Annotated[
        bool, typer.Option("--strength", help="Measure strength instead of speed.")
    ] = False,
) -> None:
    """Measure this project beside peer libraries; exit 1 where a target does not hold."""
    require_device(device)
    names = target_keys(target or [], device, strong)
    rows = measure_targets(names, Scale(pairs, examples, device), json, strong)
    OUT.print(results_table.render(rows), soft_wrap=True)
    raise typer.Exit(0 if all(row.holds for row in rows) else 1)


def target_keys(names: list[str], device: str, strong: bool) -> list[str]:
    """The keys of the chosen targets; a wrong name ends the program with a sentence."""
    try:
        return [target.key for target in selected(names, device, strong)]
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0])) from error


def require_device(device: str) -> None:
    """Raises BadParameter where the device is not available."""
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"{device} was requested, but torch finds no CUDA device.")


def measure_targets(
    names: list[str], scale: Scale, path: Path | None, strong: bool
) -> list[TargetResult]:
    """Results of the targets that can be measured here; prints why others cannot."""
    done = results_table.load(path)
    rows = []
    for name in names:
        if name not in done:
            try:
                row = in_subprocess(name, scale, strong)
            except UnavailableError as error:
                OUT.print(f"{name}: not measured. {error}")
                continue
            done[name] = row.fields()
            results_table.save(path, done)
        rows.append(results_table.result_of(done[name]))
    return rows


if __name__ == "__main__":
    typer.run(main)

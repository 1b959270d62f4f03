"""`bench sweep`: one attack with several values of its parameters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Unsandboxed, print_json
from bench.cli.variant_options import read_settings

if TYPE_CHECKING:
    from bench.evaluation.sweep import SweepPoint


def add_sweep_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command("sweep")(sweep_parameters)


def sweep_parameters(
    threat: Annotated[str, typer.Option(help="A threat model.")],
    defense: Annotated[str, typer.Option(help="A defense.")],
    attack: Annotated[str, typer.Option(help="An attack.")],
    values: Annotated[
        list[str], typer.Option("--set", help="A parameter and its values: steps=10,100,1000.")
    ],
    examples: Annotated[int, typer.Option(min=1, help="Use the first N examples.")] = 128,
    json: AsJson = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Evaluate an attack with every combination of parameter values; nothing is stored."""
    from bench.evaluation.launcher import load_registry, set_deterministic
    from bench.evaluation.plan import Selection
    from bench.evaluation.sweep import sweep

    set_deterministic()
    selection = Selection((threat,), (defense,), (attack,), examples)
    registry = load_registry(allow_unsandboxed, selection)
    found = sweep(registry, selection, read_settings(values, attack)[attack])
    rows = [_row(point) for point in found]
    if json:
        print_json({"threat": threat, "defense": defense, "attack": attack, "points": rows})
        return
    print_points(rows)


def _row(point: SweepPoint) -> dict[str, Any]:
    from bench.contract.attack_checks import why_steps_do_not_cross

    return {
        "parameters": dict(point.parameters),
        "robust": point.robust.k,
        "n": point.robust.n,
        "late": point.late,
        "converged": point.converged,
        "crosses": not why_steps_do_not_cross(point.attack),
    }


def print_points(rows: Sequence[dict[str, Any]]) -> None:
    """Write one line for each variant to stdout, and warnings to stderr."""
    for row in rows:
        chosen = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        print(f"{chosen}\t{row['robust']}/{row['n']} robust\t{row['late']} broken late")
        if not row["crosses"]:
            print(f"warning: {chosen}: the steps do not cross the set.", file=sys.stderr)
        if not row["converged"]:
            print(f"warning: {chosen}: its last doubling gains over a point.", file=sys.stderr)

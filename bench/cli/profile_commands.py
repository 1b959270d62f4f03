"""`bench profile`: where the time of one evaluation cell goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import AsJson, Batch, Order, Unsandboxed, print_json
from bench.core.cells import BALANCED_ORDER

if TYPE_CHECKING:
    from bench.evaluation.cell_profile import CellProfile


def add_profile_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command("profile")(profile)


def profile(
    threat: Annotated[str, typer.Option(help="A threat model.")],
    defense: Annotated[str, typer.Option(help="A defense.")],
    attack: Annotated[str, typer.Option(help="An attack, or a variant as 'pgd[steps=100]'.")],
    examples: Annotated[int, typer.Option(min=1, help="Use the first N examples.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    batch: Batch = None,
    order: Order = BALANCED_ORDER,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    json: AsJson = False,
    allow_unsandboxed: Unsandboxed = False,
) -> None:
    """Show where the time of one cell goes: model, attack, referee, database. Nothing is stored."""
    from bench.evaluation.built_defense import RunSettings
    from bench.evaluation.cell_profile import profile_cell
    from bench.evaluation.launcher import chosen_device, load_registry, set_deterministic
    from bench.evaluation.plan import Selection

    set_deterministic()
    selection = Selection((threat,), (defense,), (attack,), examples, seed, order=order)
    registry = load_registry(allow_unsandboxed, selection)
    found = profile_cell(registry, selection, RunSettings(chosen_device(device), batch))
    if json:
        print_json({"threat": threat, "defense": defense, "attack": attack,
                    "examples": found.examples, "seconds": found.seconds,
                    "parts": [vars(part) for part in found.parts]})  # fmt: skip
    else:
        print_profile(found)


def print_profile(found: CellProfile) -> None:
    """Write one line for each part to stdout."""
    from rich.console import Console

    from bench.results.text_table import BlockTable, TextColumn

    columns = (
        TextColumn("Part", "left"), TextColumn("Calls"), TextColumn("Seconds"), TextColumn("Share"),
    )  # fmt: skip
    rows = [
        (part.name, str(part.calls or "-"), f"{part.seconds:.3f}",
         f"{100 * part.seconds / found.seconds:.1f} %")
        for part in found.parts
    ]  # fmt: skip
    rows.append(("all", "-", f"{found.seconds:.3f}", "100.0 %"))
    pair = found.pair
    title = f"{pair.threat.name}, {pair.defense.name}, {pair.attack.name}: {found.examples} items"
    Console().print(BlockTable(title, columns, rows))

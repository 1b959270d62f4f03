"""Why a row has no rank: what is missing, and the command that completes it."""

from __future__ import annotations

import shlex

import pytest
from rich.console import Console

from bench.cli import app
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard
from bench.results.rank_notes import completing_command
from bench.results.text_report import text_report
from bench.store import Store
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, enter, rows_of


def test_a_partial_row_names_what_is_missing_and_the_command_that_completes_it(
    world: World,
) -> None:
    enter(world, "d", ALL, first(100))
    assert rows_of(world)["d"].note == (
        "Provisional: 1 of 2 required attacks are done. Missing: pgd; `bench run --threat linf"
        " --defense d --examples 600` evaluates what is missing."
    )
    world.evaluate("d", "pgd", NONE)
    assert rows_of(world)["d"].note == ""


@pytest.mark.parametrize(
    ("order", "mode", "ending"),
    [
        ("balanced", "rank", "--examples 600 --mode rank"),
        ("file", "full", "--examples 600 --order file"),
        ("file", "rank", "--examples 600 --mode rank --order file"),
    ],
)
def test_the_command_names_mode_and_order_where_they_are_not_the_usual(
    store: Store, order: str, mode: str, ending: str
) -> None:
    world = World(store, order=order)
    world.threat("linf", "fgsm", "pgd")
    for name in ("fgsm", "pgd"):
        world.attack(name)
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "fgsm", first(9), mode=mode)
    leaderboard = find_leaderboard(store, "linf", mode)
    command = completing_command(leaderboard, "d", leaderboard.n)
    assert command.endswith(f"--defense d {ending}")


def test_rows_that_lack_the_same_attacks_share_one_line_and_one_command(world: World) -> None:
    for name in ("d", "d-2"):
        enter(world, name, ALL, first(100))
    enter(world, "e", ALL)
    world.attack("extra")
    world.evaluate("e", "extra", NONE)
    console = Console(width=400, record=True)
    console.print(text_report(json_report(world.store)))
    text = console.export_text()
    both = "`bench run --threat linf --defense d --defense d-2 --examples 600` evaluates"
    assert "d, d-2: Provisional: 1 of 2" in text and both in text
    assert "e: Provisional: 0 of 2" in text and "Missing: fgsm, pgd; `bench run" in text


def test_the_command_is_one_that_bench_accepts(world: World) -> None:
    enter(world, "d", ALL, first(100))
    leaderboard = find_leaderboard(world.store, "linf")
    words = shlex.split(completing_command(leaderboard, "d", 600))
    known = {option for command in app.registered_commands for option in option_names(command)}
    assert {word for word in words if word.startswith("--")} <= known


def option_names(command: object) -> set[str]:
    """The names of the options of a command, from its parameters."""
    import inspect

    callback = command.callback  # type: ignore[attr-defined]
    return {f"--{name.replace('_', '-')}" for name in inspect.signature(callback).parameters}

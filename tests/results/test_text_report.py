"""The report on a terminal: whatever its width, every figure is printed whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.core.cells import CellState, Culprit, Failure
from bench.results.json_report import json_report
from bench.results.text_report import text_report
from tests.fixtures.small_store import World, first
from tests.results.boards import ALL

LONG = "a-defense-whose-name-is-as-long-as-names-may-get"


def told(world: World, width: int, mode: str = "full") -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as printed:
        console.print(text_report(json_report(world.store, None, mode)))
    return printed.get()


def crowd(world: World, attacks: int, *defenses: str) -> list[str]:
    """Every attack against every defense, no two with the same figure."""
    names = [f"an-attack-with-a-name-{number}" for number in range(attacks)]
    for name in names:
        world.attack(name)
    figures = []
    for place, defense in enumerate(defenses):
        world.defense(defense)
        world.clean(defense, ALL)
        for number, name in enumerate(names):
            fallen = 1 + number + place * attacks
            world.play(defense, name, first(fallen))
            figures.append(f"{600 - fallen}/600")
    return figures


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_figure_is_printed_whatever_the_width(world: World, width: int) -> None:
    figures = crowd(world, 25, "d", "e", LONG)
    said = told(world, width).partition("Right after each attack")[2].split()
    assert [figure for figure in figures if figure not in said] == []


def test_names_stand_whole_on_an_ordinary_screen(world: World) -> None:
    crowd(world, 12, "d", "some-defense", "another-defense", "a-third-defense", "a-fourth-defense")
    said = told(world, 80).partition("Right after each attack")[2]
    assert said.count("an-attack-with-a-name-11 ") > 1, "in each block"
    assert all(name in said for name in ("another-defense", "a-fourth-defense"))
    assert max(map(len, said.splitlines())) <= 80


def test_many_defenses_stand_in_lines_and_few_in_columns(world: World) -> None:
    crowd(world, 2, *(f"d{number}" for number in range(9)))
    assert any(line.split()[0:1] == ["d8"] for line in told(world, 80).splitlines())
    crowd(world, 12, "e")
    lines = told(world, 80).splitlines()
    assert any(line.split()[0:1] == ["an-attack-with-a-name-11"] for line in lines)


def test_an_attack_that_nobody_met_is_counted_and_not_printed(world: World) -> None:
    crowd(world, 1, "d")
    for name in ("unmet-1", "unmet-2"):
        world.attack(name)
        world.plan(world.cell("d", name), CellState.NOT_APPLICABLE)
    world.attack("broken-down")
    world.plan(world.cell("d", "broken-down"))
    lease = world.store.lease(world.cell("d", "broken-down").key, "away@another-host")
    assert lease is not None
    world.store.fail(lease, Failure(Culprit.PLUGIN, "It gave NaN."))
    said = told(world, 80)
    assert "unmet" not in said
    assert "Left out: 4 attacks that no defense has met." in said, "fgsm and pgd are required"
    assert "broken-down" in said and "failed" in said


def test_where_nobody_was_met_every_attack_is_printed(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    world.plan(world.cell("d", "fgsm"))
    said = told(world, 80)
    assert "missing" in said and "Left out" not in said

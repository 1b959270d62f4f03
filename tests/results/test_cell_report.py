"""The report of a cell: found by the beginning of its key, with the command that repeats it."""

from __future__ import annotations

import pytest

from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError
from bench.results.cell_report import find_cell, load_cell_report
from bench.results.leaderboards import find_leaderboard
from bench.results.matrix import load_matrix
from bench.store import Store
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, enter


@pytest.fixture
def world(store: Store) -> World:
    made = World(store)
    made.threat("linf", "pgd")
    made.attack("fgsm", steps=1)
    made.attack("pgd")
    enter(made, "d", ALL, first(5), first(9))
    return made


def test_a_finished_cell_has_its_figures_and_a_command(world: World) -> None:
    key = world.cell("d", "pgd").key
    report = load_cell_report(world.store, key[:12])
    assert report.row.key == key and report.examples.n == 600
    assert report.row.figures is not None and report.row.figures.robust == 591
    assert report.command == f"bench reproduce {key[:12]}"
    assert (report.machines, report.second, report.fit) == ((), (), None)


@pytest.mark.parametrize("attack", [CLEAN, "fgsm"])
def test_a_cell_that_cannot_be_repeated_has_no_command(world: World, attack: str) -> None:
    cell = world.cell("d", attack)
    if attack != CLEAN:
        world.defense("new")
        cell = world.cell("new", attack)
        world.plan(cell, CellState.SKIPPED, "left out")
    report = load_cell_report(world.store, cell.key)
    assert report.command == ""
    assert (report.row.reason == "left out") == (attack != CLEAN)


def test_the_matrix_holds_the_keys_of_its_figures(world: World) -> None:
    second = world.evaluate("d", "pgd", first(9), seed=1)
    cells = {c.attack: c for c in load_matrix(world.store, find_leaderboard(world.store, "linf"))}
    assert cells["fgsm"].keys == (world.cell("d", "fgsm").key,)
    assert set(cells["pgd"].keys) == {world.cell("d", "pgd").key, second.key}


@pytest.mark.parametrize("key", ["zz", "", "ABC", "0" * 65, "%"])
def test_a_text_that_is_no_key_is_an_error(world: World, key: str) -> None:
    with pytest.raises(BenchError, match="is no beginning of a cell's key"):
        find_cell(world.store, key)


def test_a_beginning_of_no_cell_or_of_several_is_an_error(world: World) -> None:
    keys = [row.key for row in world.store.cells()]
    other = next(f"{n:02x}" for n in range(256) if not any(k.startswith(f"{n:02x}") for k in keys))
    with pytest.raises(BenchError, match=f"0 cells have a key that begins with '{other}'"):
        find_cell(world.store, other)
    for n in range(40):  # with this many cells two keys begin alike
        world.defense(f"d{n}")
        world.plan(world.cell(f"d{n}", "pgd"))
    with pytest.raises(BenchError, match="cells have a key that begins with"):
        for n in range(16):
            find_cell(world.store, f"{n:x}")


def test_only_finished_cells_of_attacks_are_found_on_request(world: World) -> None:
    clean = world.cell("d", CLEAN).key
    assert find_cell(world.store, clean).key == clean
    with pytest.raises(BenchError, match="0 finished cells"):
        find_cell(world.store, clean, finished=True)

"""The cells of a leaderboard: of every version, in a fixed order."""

from __future__ import annotations

from bench.core.cells import CLEAN
from bench.results.leaderboard_cells import is_here, leaderboard_cells
from bench.results.leaderboards import find_leaderboard
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, enter


def test_cells_of_all_versions_are_listed_and_those_of_others_are_not_here(world: World) -> None:
    world.threat("other", "pgd", eps=0.4)
    enter(world, "e", ALL, NONE, NONE)
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "pgd", first(10), threat="other")
    world.attack("pgd", version="2")
    world.evaluate("d", "pgd", first(20))
    leaderboard = find_leaderboard(world.store, "linf")
    rows = leaderboard_cells(world.store, leaderboard)
    assert [row.cell.defense for row in rows] == ["d"] * 5 + ["e"] * 3
    here = [(row.cell.defense, row.cell.attack) for row in rows if is_here(row, leaderboard)]
    own = ["fgsm", "pgd"]
    assert here == [
        *(("d", name) for name in (CLEAN, *own, "pgd")), *(("e", name) for name in (CLEAN, *own)),
    ]  # fmt: skip

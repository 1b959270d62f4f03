"""The report of an attack: what it breaks, what only it breaks, and where it is the strongest."""

from __future__ import annotations

import pytest

from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.results.attack_report import AttackReport, attack_names, attack_report
from bench.results.example_results import load_results
from bench.results.leaderboards import find_leaderboard
from bench.store import Store
from tests.fixtures.small_store import World, first, some
from tests.results.small_results import ALL, enter

RIGHT = ~some(600, 0, 1, 2)
"""[600]: the first three examples are misclassified without an attack."""


@pytest.fixture
def world(store: Store) -> World:
    """Two defenses; on `weak` fgsm breaks 5 alone, on `strong` both attacks break the same."""
    made = World(store)
    made.threat("linf", "pgd")
    made.attack("fgsm", steps=1)
    made.attack("pgd")
    made.attack("idle")
    enter(made, "weak", RIGHT, first(100) | some(600, 300), first(140) & ~some(600, 5))
    enter(made, "strong", ALL, first(50), first(50))
    return made


def report(world: World, attack: str, mode: str = "full") -> AttackReport:
    results = load_results(world.store, find_leaderboard(world.store, "linf", mode))
    return attack_report(results, attack)


def test_an_attack_counts_what_it_breaks_and_what_only_it_breaks(world: World) -> None:
    weak, strong = report(world, "fgsm").defenses
    assert (weak.cell.defense, strong.cell.defense) == ("weak", "strong")
    assert (weak.right, weak.broken, weak.only_here) == (597, 98, (5, 300))
    assert (strong.right, strong.broken, strong.only_here) == (600, 50, ())
    assert not weak.is_strongest and strong.is_strongest
    found = report(world, "pgd")
    assert found.defenses[0].only_here == tuple(range(100, 140))
    assert (found.done, found.strongest_on, found.broken_only_here) == (2, 2, 40)
    assert found.required and not report(world, "fgsm").required


def test_an_attack_that_breaks_nothing_is_nowhere_the_strongest(world: World) -> None:
    world.defense("solid")
    world.clean("solid", ALL)
    world.evaluate("solid", "fgsm", first(0))
    solid = report(world, "fgsm").defenses[-1]
    assert (solid.cell.defense, solid.broken, solid.is_strongest) == ("solid", 0, False)


def test_a_cell_without_a_figure_is_last_and_counts_nowhere(world: World) -> None:
    world.defense("new")
    world.clean("new", ALL)
    world.evaluate("new", "pgd", ALL)
    world.plan(world.cell("new", "fgsm"), CellState.SKIPPED, "left out")
    found = report(world, "fgsm")
    last = found.defenses[-1]
    assert (last.cell.state, last.cell.reason, last.right) == ("skipped", "left out", 0)
    assert (found.done, found.strongest_on) == (2, 1)


def test_no_attack_is_called_the_strongest_in_a_cascade(world: World) -> None:
    world.evaluate("strong", "pgd", first(50), mode="rank")
    found = report(world, "pgd", "rank")
    assert (found.done, found.strongest_on) == (1, 0)


def test_required_attacks_come_first_and_those_without_a_figure_are_left_out(world: World) -> None:
    results = load_results(world.store, find_leaderboard(world.store, "linf"))
    assert attack_names(results) == ["pgd", "fgsm"]


def test_an_unknown_attack_is_an_error(world: World) -> None:
    with pytest.raises(BenchError, match="'retired' is no attack of this database"):
        report(world, "retired")

"""A larger radius must break what a smaller one breaks, and more."""

from __future__ import annotations

import pytest

from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, enter, flag_of

NAME = "larger-bound-does-not-help"


def at_radii(world: World, *broken: int) -> None:
    """One attack of a defense that is right everywhere, within .1, .2 and .4."""
    world.threat("half", eps=0.1, ranked=False, order=8)
    world.threat("double", eps=0.4, ranked=False, order=9)
    world.defense("d")
    world.clean("d", ALL)
    for threat, k in zip(("half", "linf", "double"), broken, strict=True):
        world.evaluate("d", "pgd", first(k), threat=threat)


@pytest.mark.row("E04e")
@pytest.mark.parametrize(("lost", "state"), [(11, "clear"), (12, "raised")])
@pytest.mark.parametrize("falls_at", ["linf", "double"])
def test_a_success_that_falls_is_a_warning_on_every_leaderboard(
    world: World, lost: int, state: str, falls_at: str
) -> None:
    """12 examples are two points of 600."""
    counts = (200, 200 - lost, 350) if falls_at == "linf" else (100, 200, 200 - lost)
    at_radii(world, *counts)
    for threat in ("linf", "half", "double"):
        flag = flag_of(world, NAME, threat=threat)
        assert flag.state == state, flag
        assert f"pgd breaks {', '.join(map(str, counts))} of 600" in flag.evidence
        assert f"{lost} are broken by the former alone and 0 by" in flag.evidence


def test_examples_lost_beside_as_many_won_pass(world: World) -> None:
    """An attack that breaks other examples within a larger radius did not fall."""
    at_radii(world, 50, 100, 300)
    world.attack("bim")
    world.evaluate("d", "bim", first(100), threat="half")
    world.evaluate("d", "bim", first(200) & ~first(90))
    assert flag_of(world, NAME).state == "clear"


def test_each_attack_is_compared_with_itself(world: World) -> None:
    """A weak attack within the larger radius says nothing about a strong one in the smaller."""
    at_radii(world, 50, 100, 300)
    world.evaluate("d", "fgsm", first(400), threat="half")
    assert flag_of(world, NAME).state == "clear"
    world.evaluate("d", "fgsm", first(100))
    flag = flag_of(world, NAME)
    assert (flag.state, flag.evidence.startswith("fgsm breaks 400, 100 of")) == ("raised", True)


@pytest.mark.parametrize(("gain", "state"), [(28, "raised"), (45, "clear")])
def test_a_success_that_hardly_rises_is_a_warning(world: World, gain: int, state: str) -> None:
    """Of 500 unbroken ones 10 % would be 50; P(X <= 28) is .0002, P(X <= 45) is .25."""
    at_radii(world, 100, 100, 100 + gain)
    assert flag_of(world, NAME).state == state


def test_no_success_within_four_times_the_radius_is_a_warning(world: World) -> None:
    at_radii(world, 0, 0, 0)
    assert flag_of(world, NAME).state == "raised"


def test_full_success_is_not_flat(world: World) -> None:
    at_radii(world, 590, 595, 595)
    assert flag_of(world, NAME).state == "clear"


def test_a_flat_success_below_four_times_the_radius_passes(world: World) -> None:
    world.threat("near", eps=0.06)
    enter(world, "d", ALL, NONE, first(100))
    world.evaluate("d", "pgd", first(100), threat="near")
    assert flag_of(world, NAME).state == "clear"
    world.threat("nearer", eps=0.05)
    world.evaluate("d", "pgd", first(100), threat="nearer")
    assert flag_of(world, NAME).state == "raised"


def test_an_attack_that_minimises_does_not_depend_on_the_radius(world: World) -> None:
    world.threat("near", eps=0.1)
    world.attack("deepfool", minimises=True)
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "deepfool", first(100), threat="near")
    world.evaluate("d", "deepfool", NONE)
    assert flag_of(world, NAME).state == "not tested"


def test_one_radius_is_not_tested(world: World) -> None:
    world.threat("near", eps=0.1)
    enter(world, "d", ALL, NONE, first(100))
    world.evaluate("d", "fgsm", NONE, threat="near")
    enter(world, "e", ALL, NONE, first(100))
    assert flag_of(world, NAME).state == "clear", "fgsm is done within both"
    assert flag_of(world, NAME, "e").state == "not tested"


def test_too_few_examples_within_both_radii_are_not_tested(world: World) -> None:
    world.threat("near", eps=0.1)
    enter(world, "d", first(9), NONE, NONE)
    world.evaluate("d", "pgd", first(9), threat="near")
    flag = flag_of(world, NAME)
    assert (flag.state, "Fewer than 10" in flag.evidence) == ("not tested", True)


def test_results_of_another_version_of_the_defense_are_not_compared(world: World) -> None:
    world.threat("near", eps=0.1)
    world.defense("d", version="0")
    world.clean("d", ALL)
    world.evaluate("d", "pgd", first(300), threat="near")
    world.defense("d", version="1")
    world.clean("d", ALL)
    world.evaluate("d", "pgd", first(100))
    assert flag_of(world, NAME).state == "not tested"

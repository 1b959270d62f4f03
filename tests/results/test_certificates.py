"""Certificates compared with attacks: a broken certified example makes the row invalid."""

from __future__ import annotations

import numpy as np
import pytest

from bench.results.defense_report import defense_report
from bench.results.leaderboards import find_leaderboard
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, certify, enter, flag_of, rows_of


@pytest.mark.parametrize("exact", [True, False])
def test_a_broken_certified_example_makes_the_row_invalid(world: World, exact: bool) -> None:
    enter(world, "d", ALL, NONE, first(100))
    certify(world, ~first(100), exact=exact)
    row = rows_of(world)["d"]
    assert (row.verdict, row.rank) == ("sound", (1, 1, 1, ()))
    assert row.certified is not None
    assert (row.certified.count.k, row.certified.certifier) == (500, "linear")
    certify(world, ~first(99), exact=exact)
    row = rows_of(world)["d"]
    assert (row.verdict, row.rank) == ("invalid", None)
    flag = flag_of(world, "soundness-error")
    assert (flag.state, "1 are broken" in flag.evidence) == ("raised", True)


def test_a_certificate_of_older_code_counts_until_it_is_made_anew(world: World) -> None:
    enter(world, "d", ALL, NONE, NONE)
    certify(world, ALL)
    world.certifier("linear", source="mended")
    found = rows_of(world)["d"].certified
    assert found is not None and (found.count.k, found.older) == (600, True)
    certify(world, ~first(600))
    found = rows_of(world)["d"].certified
    assert found is not None and (found.count.k, found.older) == (0, False)


def test_a_refuted_certifier_is_named_with_its_examples(world: World) -> None:
    broken = np.isin(np.arange(600), [7, 41, 599])
    enter(world, "d", ALL, NONE, broken)
    certify(world, ALL, "honest-looking", exact=False)
    certify(world, ~broken, "careful", exact=False)
    flag = flag_of(world, "soundness-error")
    assert flag.state == "raised"
    assert flag.evidence == (
        "Of 600 examples certified by honest-looking, 3 are broken by a verified"
        " adversarial example (number 7, 41, 599)."
    )


def test_a_certificate_is_refuted_within_a_smaller_radius(
    world: World,
) -> None:
    world.threat("near", eps=0.1)
    enter(world, "d", ALL, NONE, NONE)
    certify(world, ALL)
    assert flag_of(world, "soundness-error").state == "clear"
    world.evaluate("d", "pgd", first(1), threat="near")
    flag = flag_of(world, "soundness-error")
    assert (flag.state, "1 are broken" in flag.evidence) == ("raised", True)
    assert flag_of(world, "soundness-error", threat="near").state == "not tested"


def test_every_radius_shows_certified_and_robust_accuracy(world: World) -> None:
    world.certifier("smoothing", error=0.001)
    world.threat("near", eps=0.1)
    enter(world, "d", ALL, NONE, first(300))
    world.evaluate("d", "pgd", first(200), threat="near")
    certify(world, ~first(450))
    certify(world, ~first(400), "smoothing", exact=False)
    near, here = defense_report(world.store, find_leaderboard(world.store, "linf"), "d").radii
    assert near.certified is None and near.robust.k == 400
    assert here.certified is not None and here.robust.k == 300
    assert (here.certified.certifier, here.certified.count.k) == ("smoothing", 200)
    assert (here.certified.exact, here.certified.error) == (False, 0.001)


def test_a_certificate_of_a_misclassified_example_is_a_soundness_error(world: World) -> None:
    enter(world, "d", ~first(1), NONE, NONE)
    certify(world, ALL)
    assert flag_of(world, "soundness-error").state == "raised"


@pytest.mark.parametrize(("wrong", "state"), [(1, "clear"), (30, "raised")])
def test_a_statistical_certifier_may_be_wrong_as_often_as_stated(
    world: World, wrong: int, state: str
) -> None:
    world.certifier("smoothing", error=0.001)
    enter(world, "d", ALL, NONE, first(wrong))
    certify(world, ALL, "smoothing", exact=False)
    assert flag_of(world, "soundness-error").state == state

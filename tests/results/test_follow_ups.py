"""Follow-up attacks: what warnings call for, when they are answered, and the effect on ranks."""

from __future__ import annotations

import numpy as np
import pytest

from bench.core.cells import CellState
from bench.core.outcomes import TRUE_GRADIENT_RESTART
from bench.results.check_table import DECISION, SCORES
from bench.results.ranking import RankingRow
from bench.store import EvidenceRow
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, enter, matrix_of, rows_of

PROTOCOL = {SCORES: ("square-long",), DECISION: ("decide", "decide-long")}


@pytest.fixture
def world(world: World) -> World:
    world.threat("linf", "fgsm", "pgd", follow_ups=PROTOCOL)
    world.attack("square-long", "scores")
    world.attack("decide", "labels")
    world.attack("decide-long", "labels")
    world.diagnostic("zero-gradients")
    world.diagnostic("deterministic")
    world.diagnostic("stochastic-gradients")
    world.diagnostic("strangers-check")
    return world


def warn(world: World, defense: str, check: str) -> None:
    """Record a warning of a diagnostic."""
    source = world.digests["diagnostic", check]
    row = EvidenceRow(check, "raised", "A sentence.", source)
    world.store.record_evidence(defense, world.digests["defense", defense], world.examples, row)


def suspicious(world: World, check: str = "zero-gradients", *took: int) -> RankingRow:
    """The row of a defense that a check warns about, after follow-ups that broke the first few."""
    enter(world, "d", ALL, NONE, first(100))
    warn(world, "d", check)
    for attack, count in zip(("square-long", "decide", "decide-long"), took, strict=False):
        world.evaluate("d", attack, first(count))
    return rows_of(world)["d"]


def test_a_row_without_a_warning_calls_for_nothing(world: World) -> None:
    enter(world, "d", ALL, NONE, first(100))
    row = rows_of(world)["d"]
    assert (row.follow_ups, row.verdict, row.rank is not None) == ((), "sound", True)
    assert row.robust_ranked == row.robust_required


def test_a_warning_without_its_follow_ups_is_provisional_and_suspect(world: World) -> None:
    row = suspicious(world, "zero-gradients", 100)
    (one,) = row.follow_ups
    assert one.attacks == ("square-long", "decide", "decide-long")
    assert (one.done, one.last_took, one.answered) == (1, None, False)
    assert (row.verdict, row.rank) == ("suspect", None)
    assert "3 follow-up attacks, of which 1 are done" in row.note


@pytest.mark.parametrize(
    ("last", "answered"), [(100, True), (106, True), (107, False), (600, False)]
)
def test_a_warning_is_answered_where_the_last_follow_up_takes_one_point(
    world: World, last: int, *, answered: bool
) -> None:
    """600 examples: the last one may break six more."""
    row = suspicious(world, "zero-gradients", 60, 100, last)
    (one,) = (found for found in row.follow_ups if found.check == "zero-gradients")
    assert (one.last_took, one.answered) == (last - 100, answered)
    assert row.verdict == ("sound" if answered else "suspect")
    assert row.rank is not None
    assert (row.robust_required.k, row.robust_ranked.k) == (500, 600 - last)


def test_what_follow_ups_break_counts_in_the_ranked_figure_alone(world: World) -> None:
    row = suspicious(world, "zero-gradients", 300, 300, 300)
    assert (row.robust_required.k, row.robust_ranked.k, row.robust.k) == (500, 300, 300)


def test_an_attack_that_no_warning_calls_for_changes_no_rank(world: World) -> None:
    enter(world, "d", ALL, NONE, first(100))
    world.evaluate("d", "square-long", first(105))
    row = rows_of(world)["d"]
    assert (row.robust_ranked.k, row.robust.k) == (500, 495)


def test_what_an_extra_attack_shows_is_a_warning_with_consequences(world: World) -> None:
    """An attack without gradients that breaks far more calls for the follow-ups, and counts."""
    enter(world, "d", ALL, NONE, first(100))
    world.evaluate("d", "square-long", first(400))
    row = rows_of(world)["d"]
    assert "black-box-beats-white-box" in {one.check for one in row.follow_ups}
    assert (row.verdict, row.rank, row.robust_ranked.k) == ("suspect", None, 200)


def test_a_check_calls_for_the_kinds_that_answer_it(world: World) -> None:
    row = suspicious(world, "stochastic-gradients")
    assert row.follow_ups[0].attacks == ("decide", "decide-long")


def test_a_check_of_a_plugin_calls_for_all(world: World) -> None:
    row = suspicious(world, "strangers-check")
    assert row.follow_ups[0].attacks == ("square-long", "decide", "decide-long")


def test_an_attack_that_does_not_apply_is_not_waited_for(world: World) -> None:
    enter(world, "d", ALL, NONE, first(100))
    warn(world, "d", "zero-gradients")
    world.evaluate("d", "square-long", first(150))
    world.evaluate("d", "decide", first(152))
    world.plan(world.cell("d", "decide-long"), CellState.NOT_APPLICABLE, "No such norm.")
    row = rows_of(world)["d"]
    assert (row.follow_ups[0].last_took, row.verdict) == (2, "sound")


def test_nothing_answers_a_check_that_invalidates(world: World) -> None:
    row = suspicious(world, "deterministic", 100, 100, 100)
    assert (row.verdict, row.rank) == ("invalid", None)


def test_a_suspect_row_stands_below_every_row_that_passed(world: World) -> None:
    enter(world, "weak", ALL, NONE, first(550))
    enter(world, "weaker", ALL, NONE, first(590))
    enter(world, "fake", ALL, NONE, first(1))
    enter(world, "fake-too", ALL, NONE, first(300))
    for name in ("fake", "fake-too"):
        warn(world, name, "zero-gradients")
        for attack, count in (("square-long", 0), ("decide", 0), ("decide-long", 40)):
            world.evaluate(name, attack, first(count) if name == "fake" else first(300 + count))
    rows = rows_of(world)
    ranks = {name: row.rank and (row.rank.best, row.rank.worst) for name, row in rows.items()}
    assert ranks == {"weak": (1, 1), "weaker": (2, 2), "fake": (3, 3), "fake-too": (4, 4)}
    assert [row.verdict for row in rows.values()] == ["sound", "sound", "suspect", "suspect"]
    tied = {other for row in rows.values() if row.rank for other in row.rank.tied}
    assert tied == set()


def test_the_matrix_says_which_gradient_broke_what(world: World) -> None:
    """Restarts from TRUE_GRADIENT_RESTART on are those of the true gradient."""
    world.defense("d", bpda=True)
    world.clean("d", ALL)
    restart = np.where(np.arange(600) < 40, TRUE_GRADIENT_RESTART, 0)
    world.evaluate("d", "fgsm", first(100), restart=restart)
    world.attack("square-long", "scores")
    world.evaluate("d", "square-long", first(100))
    found = {cell.attack: cell.true_gradient for cell in matrix_of(world.store, "linf")}
    assert (found["fgsm"], found["square-long"], found["pgd"]) == (40, None, None)


def test_without_an_approximation_there_is_nothing_to_tell_apart(world: World) -> None:
    enter(world, "d", ALL, first(100))
    assert {cell.true_gradient for cell in matrix_of(world.store, "linf")} == {None}


def test_a_row_without_any_attack_has_no_verdict_and_no_figure(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    world.plan(world.cell("d", "pgd"))
    row = rows_of(world)["d"]
    assert (row.verdict, row.robust.n, row.clean.k) == ("", 0, 600)

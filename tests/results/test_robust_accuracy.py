"""Robust accuracy: whose cells count, and how they come to one figure."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from bench.core.cells import PROTOCOL, CellState, Culprit, Failure
from bench.core.outcomes import Chunk, Outcomes
from bench.results import text_report
from bench.results.example_results import load_results
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard, leaderboards
from bench.results.matrix import load_matrix
from bench.results.ranking import load_ranking
from bench.results.text_table import BlockTable
from bench.store import Store
from bench.threats.suites import Suite
from leaderboard import chart_rows, words
from tests.fixtures.small_store import Bits, World, first, outcomes, some
from tests.results.small_results import ALL, NONE, enter, matrix_of, ranking_of, rows_of


def test_robust_is_the_worst_case_by_example_and_not_the_least_of_the_means(world: World) -> None:
    enter(world, "d", first(500), some(600, 0, 1), some(600, 1, 2, 3, 599))
    row = rows_of(world)["d"]
    assert (row.clean.k, row.robust.k, row.robust.n) == (500, 496, 600)
    assert row.strongest == "pgd"
    alone = [s.robust and s.robust.k for s in matrix_of(world.store, None)]
    assert alone == [498, 497]


def test_optional_attacks_lower_the_robust_figure_but_not_the_required_one(world: World) -> None:
    world.attack("extra")
    enter(world, "d", ALL, first(10), first(20))
    world.play("d", "extra", first(30))
    row = rows_of(world)["d"]
    assert (row.robust.k, row.robust_required.k) == (570, 580)


def test_what_rounding_to_eight_bits_repairs_counts_as_right_in_that_column_only(
    world: World,
) -> None:
    enter(world, "d", ALL, first(10))
    world.play("d", "pgd", first(20), eight_bit=first(5))
    row = rows_of(world)["d"]
    assert (row.robust.k, row.robust_8bit.k) == (580, 590)


def test_a_cascade_has_no_eight_bit_figure(world: World) -> None:
    """pgd would break in 8 bits what fgsm broke in float alone, but never meets it."""
    world.defense("d")
    world.clean("d", ALL)
    whole = {"fgsm": outcomes(first(200), eight_bit=NONE), "pgd": outcomes(first(250))}
    for attack, found in whole.items():
        world.record(world.cell("d", attack), found)
    world.record(fgsm := world.cell("d", "fgsm", mode="rank"), whole["fgsm"])
    left = np.arange(200, 600, dtype=np.int32)
    world.play("d", "pgd", first(50, 400), items=left, mode="rank", before=fgsm.key)
    told = [ranking_of(world.store, None, mode)[0] for mode in ("full", "rank")]
    assert [row.robust.k for row in told] == [350, 350]
    assert [(row.robust_8bit.k, row.robust_8bit.n) for row in told] == [(350, 600), (0, 0)]


def test_a_board_of_distances_has_no_eight_bit_figure(world: World) -> None:
    """Its radius is the whole box: every example breaks, and which pixels survive says nothing."""
    world.threat("nearest", "pgd", goal="nearest", ranked=False)
    world.defense("d")
    world.clean("d", ALL)
    world.play("d", "pgd", ALL, eight_bit=first(30), threat="nearest")
    row = rows_of(world, "nearest")["d"]
    assert (row.robust.k, row.robust.n, row.robust_8bit.n) == (0, 600, 0)


def test_a_cell_of_an_old_attack_an_old_defense_or_other_rules_does_not_count(
    world: World,
) -> None:
    enter(world, "d", ALL, NONE, NONE)
    world.attack("extra")
    world.play("d", "extra", first(300))
    world.attack("extra", version="2")
    world.attack("other")
    world.play("d", "other", first(300), protocol=99)
    world.defense("e", version="1")
    world.play("e", "pgd", ALL)
    world.defense("e", version="2")
    assert list(rows_of(world)) == ["d"]
    assert rows_of(world)["d"].robust.k == 600
    assert {square.attack for square in matrix_of(world.store, None)} == {
        "fgsm",
        "pgd",
    }


@pytest.mark.parametrize(
    ("changed", "said"),
    [("attack", "the attack"), ("protocol", "the protocol"), ("nothing", "Not planned")],
)
def test_a_cell_played_with_what_has_changed_since_says_so(
    world: World, changed: str, said: str
) -> None:
    enter(world, "d", ALL, NONE)
    if changed != "nothing":
        world.play("d", "pgd", first(300), protocol=99 if changed == "protocol" else PROTOCOL)
    if changed == "attack":
        world.attack("pgd", version="2")
    (square,) = [s for s in matrix_of(world.store, None) if s.attack == "pgd"]
    assert (square.state, square.robust) == ("missing", None)
    assert said in square.reason
    assert ("older version" in square.reason) == (changed != "nothing")
    assert "planned" not in words.STATE_EXPLANATIONS["missing"]


def test_a_cell_of_an_older_defense_says_so(world: World) -> None:
    enter(world, "d", ALL, NONE, NONE)
    world.defense("d", version="2")
    world.play("d", "fgsm", NONE)
    (square,) = [s for s in matrix_of(world.store, None) if s.attack == "pgd"]
    assert "an older version of the defense" in square.reason


def test_a_cell_behind_an_attack_of_its_cascade_that_changed_says_so(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    before = world.play("d", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.play("d", "pgd", NONE[left], items=left, mode="rank", before=before.key)
    world.attack("fgsm", steps=1, version="2")
    world.play("d", "fgsm", first(10), mode="rank")
    board = find_leaderboard(world.store, None, "rank")
    (square,) = [s for s in load_matrix(world.store, board) if s.attack == "pgd"]
    assert square.reason.startswith("Evaluated with an older version of an attack before it")


def test_a_card_without_a_digest_leaves_the_newest_version_standing(world: World) -> None:
    enter(world, "d", ALL, first(100), first(100))
    world.defense("d", version="2")
    enter_again = world.cell("d", "pgd")
    world.clean("d", ALL)
    world.record(enter_again, outcomes(first(30)))
    world.unbuilt("d")
    assert rows_of(world)["d"].robust.k == 570
    assert (
        "fgsm"
        not in load_results(world.store, find_leaderboard(world.store, None)).defenses["d"].attacks
    )


def test_a_card_may_name_a_digest_for_each_data_set(world: World) -> None:
    enter(world, "d", ALL, first(100), first(100))
    mine = world.digests["defense", "d"]
    world.defense("d", version="built on other data")
    assert rows_of(world) == {}
    world.unbuilt("d", digests={"digits": mine, "mnist": "other"})
    assert rows_of(world)["d"].robust.k == 500


def test_other_modes_and_example_sets_have_boards_of_their_own(world: World) -> None:
    enter(world, "d", ALL, first(6), first(9))
    world.play("d", "pgd", first(500), mode="rank")
    few = World(world.store, n=100, examples="few", threats=world.threats, digests=world.digests)
    few.play("d", "pgd", first(50, 100))
    assert [(b.n, b.mode) for b in leaderboards(world.store)] == [
        (600, "full"),
        (600, "rank"),
        (100, "full"),
    ]
    assert rows_of(world)["d"].robust.k == 591


def test_boards_stand_in_the_order_of_their_threats(world: World) -> None:
    world.threat("zero", order=0)
    enter(world, "d", ALL, NONE, NONE)
    world.play("d", "pgd", NONE, threat="zero")
    assert [board.name for board in leaderboards(world.store)] == ["zero", "linf"]
    assert find_leaderboard(world.store, None).name == "zero"


def test_all_seeds_of_an_attack_are_one_square(world: World) -> None:
    enter(world, "d", ALL, NONE)
    world.play("d", "pgd", some(600, 1), seed=0)
    world.play("d", "pgd", some(600, 2), seed=1)
    (square,) = [s for s in matrix_of(world.store, "linf") if s.attack == "pgd"]
    assert square.robust is not None
    assert (square.robust.k, square.gradients, square.seconds) == (598, 2400, 1.0)


def test_costs_are_those_of_the_seeds_that_have_a_figure(world: World) -> None:
    """A seed that failed half-way would halve the gradients an example and blur the seconds."""
    enter(world, "d", ALL, NONE)
    world.play("d", "pgd", some(600, 1), seed=0)
    lost = world.cell("d", "pgd", seed=1)
    world.plan(lost)
    lease = world.store.lease(lost.key, "away@another-host")
    assert lease is not None
    half = Outcomes._make(column[:300] for column in outcomes(NONE))
    world.store.record(lease, Chunk(half, 7.0))
    world.store.fail(lease, Failure(Culprit.PLUGIN, "It divided by zero."))
    (square,) = [s for s in matrix_of(world.store, "linf") if s.attack == "pgd"]
    assert (square.state, square.items, square.items_done) == ("done", 600, 600)
    assert (square.forwards, square.gradients, square.seconds) == (1800, 1200, 0.5)
    told = {name: metric.value(square) for name, metric in chart_rows.FULL_MODE_METRICS.items()}
    assert told["gradients an example"] == 2
    assert told["forward passes an example"] == 3
    assert told["seconds an example"] == 0.5 / 600


def test_what_no_seed_has_finished_counts_all_of_them(world: World) -> None:
    enter(world, "d", ALL, NONE)
    for seed in (0, 1):
        world.plan(world.cell("d", "pgd", seed=seed))
    (square,) = [s for s in matrix_of(world.store, "linf") if s.attack == "pgd"]
    assert (square.state, square.items, square.forwards) == ("missing", 1200, None)


def test_a_board_of_all_targets_counts_the_worst_target_of_each_example(store: Store) -> None:
    world = World(store, n=4, classes=3)
    world.threat("all", goal="targeted", rule="all")
    world.attack("pgd")
    world.defense("d")
    world.clean("d", np.ones(4, np.bool_))
    # Items are (example, target): 0, 1 belong to example 0; 6, 7 to example 3.
    world.play("d", "pgd", some(8, 0, 5, 6, 7), threat="all")
    board = find_leaderboard(store, "all")
    assert load_results(store, board).defenses["d"].robust().tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert load_ranking(store, board)[0].robust.k == 1


def test_in_a_cascade_a_square_counts_those_it_met(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    world.play("d", "fgsm", first(200), mode="rank")
    survivors = np.arange(200, 600, dtype=np.int32)
    world.play("d", "pgd", first(100, 400), items=survivors, mode="rank")
    board = find_leaderboard(world.store, None, "rank")
    squares = {s.attack: s.robust for s in load_matrix(world.store, board)}
    assert squares["pgd"] is not None
    assert (squares["pgd"].k, squares["pgd"].n) == (300, 400)
    (row,) = load_ranking(world.store, board)
    assert row.strongest is None
    assert row.robust.k == 300
    states = {flag.name: flag.state for flag in row.flags}
    assert states["one-step-beats-iterative"] == "not tested"


def test_a_cell_of_a_cascade_counts_only_after_what_came_before(world: World) -> None:
    """Who fell to an attack that has changed since is nobody's success, and nobody met them."""
    world.attack("pgd", steps=40)
    world.defense("d")
    world.clean("d", ALL)
    before = world.play("d", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.play("d", "pgd", first(100, 400), items=left, mode="rank", before=before.key)
    board = find_leaderboard(world.store, None, "rank")
    (row,) = load_ranking(world.store, board)
    assert (row.robust.k, row.coverage.done, row.provisional) == (300, 2, False)
    world.attack("fgsm", steps=1, version="2")
    assert load_ranking(world.store, board) == []
    world.play("d", "fgsm", first(10), mode="rank")
    (row,) = load_ranking(world.store, board)
    assert (row.robust.k, row.coverage.done, row.provisional) == (590, 1, True)


def test_a_cascade_tells_apart_only_what_it_can(world: World) -> None:
    """fgsm is not required: how many pgd alone would leave is unknown until it met all."""
    world.threat("linf", "pgd")
    world.defense("d")
    world.clean("d", ALL)
    before = world.play("d", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.play("d", "pgd", first(100, 400), items=left, mode="rank", before=before.key)
    (row,) = ranking_of(world.store, None, "rank")
    assert (row.robust.k, row.robust_required.n) == (300, 0)
    world.play("d", "pgd", first(250), mode="rank")
    (row,) = ranking_of(world.store, None, "rank")
    assert (row.robust.k, row.robust_required.k, row.robust_required.n) == (300, 300, 600)


def cascade(world: World, defense: str, *broken: tuple[str, Bits]) -> None:
    """A cascade of one defense: who breaks whom of all, in this order."""
    world.defense(defense)
    world.clean(defense, ALL)
    before, left = "", np.arange(600, dtype=np.int32)
    for attack, bits in broken:
        cell = world.play(defense, attack, bits[left], items=left, mode="rank", before=before)
        before, left = cell.key, left[~bits[left]]


def test_attacks_of_a_cascade_stand_in_the_order_in_which_they_came(world: World) -> None:
    """fgsm came first although a cell that it may not play leaves it the fewest examples."""
    world.attack("bim")
    world.threat("linf", "fgsm", "joint", "pgd")
    cascade(world, "a", ("fgsm", first(100)), ("pgd", first(200)), ("bim", first(300)))
    cascade(world, "b", ("pgd", first(100)), ("bim", first(500)))
    world.plan(world.cell("b", "fgsm", mode="rank"), CellState.NOT_APPLICABLE, "Its own surrogate.")
    board = find_leaderboard(world.store, None, "rank")
    came = ["fgsm", "pgd", "bim", "joint"]
    assert [s.attack for s in load_matrix(world.store, board)] == came + came
    assert chart_rows.attack_columns(board, load_matrix(world.store, board)) == came
    shown = text_report.terminal_matrix(json_report(world.store, None, "rank")).renderables[0]
    assert isinstance(shown, BlockTable)
    assert [row[0] for row in shown.rows] == ["fgsm", "pgd", "bim"], "joint was not evaluated"


def test_cascades_that_contradict_each_other_have_an_order_too(world: World) -> None:
    cascade(world, "a", ("fgsm", first(100)), ("pgd", first(200)))
    cascade(world, "b", ("pgd", first(100)), ("fgsm", first(200)))
    board = find_leaderboard(world.store, None, "rank")
    assert [s.attack for s in load_matrix(world.store, board)] == ["fgsm", "pgd"] * 2


def test_a_profile_counts_its_own_attacks_once_all_are_done(world: World) -> None:
    world.attack("cw")
    world.defense("d")
    world.clean("d", ~first(10))
    battery = Suite("two", {"Linf": ("fgsm", "pgd")}, "", "")
    world.play("d", "fgsm", first(20))
    world.play("d", "cw", first(500))
    (row,) = json_report(world.store, None, "full", battery)["ranking"]
    assert row["suite"] == {"done": 1, "attacks": 2, "robust": None}
    world.play("d", "pgd", some(600, 5, 100))
    told = json_report(world.store, None, "full", battery)
    (row,) = told["ranking"]
    assert told["suite"] == {"name": "two", "attacks": ["fgsm", "pgd"]}
    assert (row["robust"]["k"], row["suite"]["robust"]["k"]) == (100, 579)
    console = Console(width=200, file=io.StringIO())
    console.print(text_report.text_report(told))
    assert "579/600" in console.file.getvalue()  # type: ignore[attr-defined]
    assert json_report(world.store)["ranking"][0]["suite"] is None

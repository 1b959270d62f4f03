"""Robust accuracy: which cells count, and how they give one figure."""

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


def test_robust_accuracy_is_the_worst_case_per_example(
    world: World,
) -> None:
    enter(world, "d", first(500), some(600, 0, 1), some(600, 1, 2, 3, 599))
    row = rows_of(world)["d"]
    assert (row.clean.k, row.robust.k, row.robust.n) == (500, 496, 600)
    assert row.strongest == "pgd"
    alone = [s.robust and s.robust.k for s in matrix_of(world.store, None)]
    assert alone == [498, 497]


def test_optional_attacks_lower_the_robust_figure_but_not_the_required_one(world: World) -> None:
    world.attack("extra")
    enter(world, "d", ALL, first(10), first(20))
    world.evaluate("d", "extra", first(30))
    row = rows_of(world)["d"]
    assert (row.robust.k, row.robust_required.k) == (570, 580)


def test_an_example_that_rounding_repairs_is_right_in_the_8_bit_column_only(
    world: World,
) -> None:
    enter(world, "d", ALL, first(10))
    world.evaluate("d", "pgd", first(20), eight_bit=first(5))
    row = rows_of(world)["d"]
    assert (row.robust.k, row.robust_8bit.k) == (580, 590)


def test_a_cascade_has_no_eight_bit_figure(world: World) -> None:
    """pgd would break in 8 bits what fgsm broke in float alone, but does not run on it."""
    world.defense("d")
    world.clean("d", ALL)
    whole = {"fgsm": outcomes(first(200), eight_bit=NONE), "pgd": outcomes(first(250))}
    for attack, found in whole.items():
        world.record(world.cell("d", attack), found)
    world.record(fgsm := world.cell("d", "fgsm", mode="rank"), whole["fgsm"])
    left = np.arange(200, 600, dtype=np.int32)
    world.evaluate("d", "pgd", first(50, 400), items=left, mode="rank", before=fgsm.key)
    told = [ranking_of(world.store, None, mode)[0] for mode in ("full", "rank")]
    assert [row.robust.k for row in told] == [350, 350]
    assert [(row.robust_8bit.k, row.robust_8bit.n) for row in told] == [(350, 600), (0, 0)]


def test_nearest_adversarial_examples_have_no_eight_bit_figure(world: World) -> None:
    """The radius is the whole box: every example breaks, so survival of rounding has no meaning."""
    world.threat("nearest", "pgd", goal="nearest", ranked=False)
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "pgd", ALL, eight_bit=first(30), threat="nearest")
    row = rows_of(world, "nearest")["d"]
    assert (row.robust.k, row.robust.n, row.robust_8bit.n) == (0, 600, 0)


def test_a_cell_of_an_old_protocol_does_not_count(world: World) -> None:
    enter(world, "d", ALL, NONE, NONE)
    world.attack("other")
    world.evaluate("d", "other", first(300), protocol=99)
    world.defense("e")
    world.evaluate("e", "pgd", ALL, protocol=99)
    assert list(rows_of(world)) == ["d"]
    assert rows_of(world)["d"].robust.k == 600
    assert {cell.attack for cell in matrix_of(world.store, None)} == {
        "fgsm",
        "pgd",
    }


@pytest.mark.parametrize(
    ("changed", "said"), [("protocol", "the protocol"), ("nothing", "Not planned")]
)
def test_an_outdated_cell_states_what_has_changed(world: World, changed: str, said: str) -> None:
    enter(world, "d", ALL, NONE)
    if changed != "nothing":
        world.evaluate("d", "pgd", first(300), protocol=99 if changed == "protocol" else PROTOCOL)
    (cell,) = [s for s in matrix_of(world.store, None) if s.attack == "pgd"]
    assert (cell.state, cell.robust) == ("missing", None)
    assert said in cell.reason
    assert ("older version" in cell.reason) == (changed != "nothing")
    assert "planned" not in words.STATE_EXPLANATIONS["missing"]


def test_a_cell_of_an_older_defense_is_named(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "pgd", NONE)
    world.defense("d", version="2")
    world.evaluate("d", "fgsm", NONE)
    (cell,) = [s for s in matrix_of(world.store, None) if s.attack == "pgd"]
    assert "an older version of the defense" in cell.reason


def test_a_cell_after_a_changed_attack_of_its_cascade_is_named(world: World) -> None:
    world.attack("bim")
    world.threat("linf", "fgsm", "pgd", "bim")
    world.defense("d")
    world.clean("d", ALL)
    before = world.evaluate("d", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.evaluate("d", "pgd", NONE[left], items=left, mode="rank", before=before.key)
    world.attack("fgsm", steps=1, version="2")
    world.evaluate("d", "fgsm", first(10), mode="rank")
    leaderboard = find_leaderboard(world.store, None, "rank")
    (cell,) = [s for s in load_matrix(world.store, leaderboard) if s.attack == "pgd"]
    assert cell.reason.startswith("Evaluated with an older version of an attack before it")


def test_a_card_without_a_digest_shows_the_newest_version(world: World) -> None:
    enter(world, "d", ALL, first(100))
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
    assert rows_of(world)["d"].versions is not None
    world.unbuilt("d", digests={"digits": mine, "mnist": "other"})
    row = rows_of(world)["d"]
    assert (row.robust.k, row.versions) == (500, None)


def test_other_modes_and_example_sets_have_their_own_leaderboards(world: World) -> None:
    enter(world, "d", ALL, first(6), first(9))
    world.evaluate("d", "pgd", first(500), mode="rank")
    few = World(world.store, n=100, examples="few", threats=world.threats, digests=world.digests)
    few.evaluate("d", "pgd", first(50, 100))
    assert [(b.n, b.mode) for b in leaderboards(world.store)] == [
        (600, "full"),
        (600, "rank"),
        (100, "full"),
    ]
    assert rows_of(world)["d"].robust.k == 591


def test_leaderboards_are_in_the_order_of_their_threat_models(world: World) -> None:
    world.threat("zero", order=0)
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "pgd", NONE, threat="zero")
    assert [leaderboard.name for leaderboard in leaderboards(world.store)] == ["zero", "linf"]
    assert find_leaderboard(world.store, None).name == "zero"


def test_all_seeds_of_an_attack_are_one_matrix_cell(world: World) -> None:
    enter(world, "d", ALL, NONE)
    world.evaluate("d", "pgd", some(600, 1), seed=0)
    world.evaluate("d", "pgd", some(600, 2), seed=1)
    (cell,) = [s for s in matrix_of(world.store, "linf") if s.attack == "pgd"]
    assert cell.robust is not None
    assert (cell.robust.k, cell.gradients, cell.seconds) == (598, 2400, 1.0)


def test_costs_are_those_of_the_seeds_that_have_a_figure(world: World) -> None:
    """A seed that failed halfway does not change the costs per example."""
    enter(world, "d", ALL, NONE)
    world.evaluate("d", "pgd", some(600, 1), seed=0)
    lost = world.cell("d", "pgd", seed=1)
    world.plan(lost)
    lease = world.store.lease(lost.key, "away@another-host")
    assert lease is not None
    half = Outcomes._make(column[:300] for column in outcomes(NONE))
    world.store.record(lease, Chunk(half, 7.0))
    world.store.fail(lease, Failure(Culprit.PLUGIN, "It divided by zero."))
    (cell,) = [s for s in matrix_of(world.store, "linf") if s.attack == "pgd"]
    assert (cell.state, cell.items, cell.items_done) == ("done", 600, 600)
    assert (cell.forwards, cell.gradients, cell.seconds) == (1800, 1200, 0.5)
    told = {name: metric.value(cell) for name, metric in chart_rows.FULL_MODE_METRICS.items()}
    assert told["gradient evaluations per example"] == 2
    assert told["queries per example"] == 3
    assert told["seconds per example"] == 0.5 / 600


def test_without_a_finished_seed_all_seeds_count(world: World) -> None:
    enter(world, "d", ALL, NONE)
    for seed in (0, 1):
        world.plan(world.cell("d", "pgd", seed=seed))
    (cell,) = [s for s in matrix_of(world.store, "linf") if s.attack == "pgd"]
    assert (cell.state, cell.items, cell.forwards) == ("missing", 1200, None)


def test_with_all_targets_the_worst_target_of_each_example_counts(store: Store) -> None:
    world = World(store, n=4, classes=3)
    world.threat("all", goal="targeted", rule="all")
    world.attack("pgd")
    world.defense("d")
    world.clean("d", np.ones(4, np.bool_))
    # Items are (example, target): 0, 1 belong to example 0; 6, 7 to example 3.
    world.evaluate("d", "pgd", some(8, 0, 5, 6, 7), threat="all")
    leaderboard = find_leaderboard(store, "all")
    assert load_results(store, leaderboard).defenses["d"].robust().tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert load_ranking(store, leaderboard)[0].robust.k == 1


def test_in_a_cascade_a_square_counts_those_it_met(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "fgsm", first(200), mode="rank")
    survivors = np.arange(200, 600, dtype=np.int32)
    world.evaluate("d", "pgd", first(100, 400), items=survivors, mode="rank")
    leaderboard = find_leaderboard(world.store, None, "rank")
    cells = {s.attack: s.robust for s in load_matrix(world.store, leaderboard)}
    assert cells["pgd"] is not None
    assert (cells["pgd"].k, cells["pgd"].n) == (300, 400)
    (row,) = load_ranking(world.store, leaderboard)
    assert row.strongest is None
    assert row.robust.k == 300
    states = {flag.name: flag.state for flag in row.flags}
    assert states["one-step-beats-iterative"] == "not tested"


def test_a_cell_of_a_cascade_counts_only_after_the_cells_before_it(world: World) -> None:
    """Examples broken by an attack that has changed count for no attack of the new cascade."""
    world.attack("bim")
    world.threat("linf", "fgsm", "pgd", "bim")
    world.defense("d")
    world.clean("d", ALL)
    before = world.evaluate("d", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.evaluate("d", "pgd", first(100, 400), items=left, mode="rank", before=before.key)
    leaderboard = find_leaderboard(world.store, None, "rank")
    (row,) = load_ranking(world.store, leaderboard)
    assert (row.robust.k, row.coverage.done, row.provisional) == (300, 2, True)
    world.attack("fgsm", steps=1, version="2")
    (row,) = load_ranking(world.store, leaderboard)
    assert (row.robust.k, row.coverage.done) == (300, 2)
    world.evaluate("d", "fgsm", first(10), mode="rank")
    (row,) = load_ranking(world.store, leaderboard)
    assert (row.robust.k, row.coverage.done, row.provisional) == (590, 1, True)


def test_a_cascade_may_leave_the_required_figure_unknown(world: World) -> None:
    """fgsm is not required: the figure of pgd alone is unknown until it ran on all examples."""
    world.threat("linf", "pgd")
    world.defense("d")
    world.clean("d", ALL)
    before = world.evaluate("d", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.evaluate("d", "pgd", first(100, 400), items=left, mode="rank", before=before.key)
    (row,) = ranking_of(world.store, None, "rank")
    assert (row.robust.k, row.robust_required.n) == (300, 0)
    world.evaluate("d", "pgd", first(250), mode="rank")
    (row,) = ranking_of(world.store, None, "rank")
    assert (row.robust.k, row.robust_required.k, row.robust_required.n) == (300, 300, 600)


def cascade(world: World, defense: str, *broken: tuple[str, Bits]) -> None:
    """A cascade of one defense: each attack with the examples that it breaks, in this order."""
    world.defense(defense)
    world.clean(defense, ALL)
    before, left = "", np.arange(600, dtype=np.int32)
    for attack, bits in broken:
        cell = world.evaluate(defense, attack, bits[left], items=left, mode="rank", before=before)
        before, left = cell.key, left[~bits[left]]


def test_attacks_of_a_cascade_are_in_the_order_in_which_they_ran(world: World) -> None:
    """fgsm is first although one of its cells is not applicable."""
    world.attack("bim")
    world.threat("linf", "fgsm", "joint", "pgd")
    cascade(world, "a", ("fgsm", first(100)), ("pgd", first(200)), ("bim", first(300)))
    cascade(world, "b", ("pgd", first(100)), ("bim", first(500)))
    world.plan(world.cell("b", "fgsm", mode="rank"), CellState.NOT_APPLICABLE, "Its own surrogate.")
    leaderboard = find_leaderboard(world.store, None, "rank")
    came = ["fgsm", "pgd", "bim", "joint"]
    assert [s.attack for s in load_matrix(world.store, leaderboard)] == came + came
    assert chart_rows.attack_columns(leaderboard, load_matrix(world.store, leaderboard)) == came
    shown = text_report.terminal_matrix(json_report(world.store, None, "rank")).renderables[0]
    assert isinstance(shown, BlockTable)
    assert [row[0] for row in shown.rows] == ["fgsm", "pgd", "bim"], "joint was not evaluated"


def test_cascades_that_contradict_each_other_have_an_order_too(world: World) -> None:
    cascade(world, "a", ("fgsm", first(100)), ("pgd", first(200)))
    cascade(world, "b", ("pgd", first(100)), ("fgsm", first(200)))
    leaderboard = find_leaderboard(world.store, None, "rank")
    assert [s.attack for s in load_matrix(world.store, leaderboard)] == ["fgsm", "pgd"] * 2


def test_a_suite_counts_its_own_attacks_once_all_are_done(world: World) -> None:
    world.attack("cw")
    world.defense("d")
    world.clean("d", ~first(10))
    suite = Suite("two", {"Linf": ("fgsm", "pgd")}, "", "")
    world.evaluate("d", "fgsm", first(20))
    world.evaluate("d", "cw", first(500))
    (row,) = json_report(world.store, None, "full", suite)["ranking"]
    assert row["suite"] == {"done": 1, "attacks": 2, "robust": None}
    world.evaluate("d", "pgd", some(600, 5, 100))
    told = json_report(world.store, None, "full", suite)
    (row,) = told["ranking"]
    assert told["suite"] == {"name": "two", "attacks": ["fgsm", "pgd"]}
    assert (row["robust"]["k"], row["suite"]["robust"]["k"]) == (100, 579)
    console = Console(width=200, file=io.StringIO())
    console.print(text_report.text_report(told))
    assert "579/600" in console.file.getvalue()  # type: ignore[attr-defined]
    assert json_report(world.store)["ranking"][0]["suite"] is None


def test_an_attack_on_the_first_few_examples_leaves_out_the_others(world: World) -> None:
    """It decides the required figure: what it leaves out is robust under it."""
    world.threat("linf", "few")
    world.attack("few", examples=100)
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "few", first(30, 100))
    found = load_results(world.store, find_leaderboard(world.store, "linf")).defenses["d"]
    assert found.attacks["few"].left_out.tolist() == [item >= 100 for item in range(600)]
    row = rows_of(world)["d"]
    assert (row.robust_required.k, row.robust_required.n, row.coverage.done) == (570, 600, 1)
    assert row.rank is not None


def test_the_strongest_of_named_attacks_is_one_of_those_that_are_done(world: World) -> None:
    enter(world, "d", ALL, first(20), first(40))
    found = load_results(world.store, find_leaderboard(world.store, "linf")).defenses["d"]
    assert found.strongest_attack() == "pgd"
    assert found.strongest_attack(["fgsm", "never-done"]) == "fgsm"
    assert found.strongest_attack(["never-done"]) is None
    assert found.broken_by(["fgsm"]).tolist() == first(20).tolist()


def test_the_nearest_example_is_wrong_answered_and_accepted(store: Store) -> None:
    """Beyond the radius the label and the rejection score decide, not the verdict."""
    world = World(store, n=6, labels=np.array([0, 0, 0, 0, 1, 0], np.int16))
    world.threat("nearest", "pgd", goal="nearest", ranked=False)
    world.attack("pgd")
    world.defense("d")
    world.clean("d", np.ones(6, np.bool_))
    world.evaluate(
        "d", "pgd", some(6, 5), threat="nearest", distance=np.arange(1.0, 7.0),
        label=[-1, 0, 1, 1, 0, 1],  # no answer, right, wrong four times
        rejection=[-1, -1, 0, 0.5, -1, -1],  # above 0 is rejected
    )  # fmt: skip
    found = load_results(store, find_leaderboard(store, "nearest")).defenses["d"].attacks["pgd"]
    assert found.distance.tolist() == [np.inf, np.inf, 3.0, np.inf, 5.0, 6.0]
    world.threat("linf", "pgd")
    label, far = [1] * 6, np.arange(1.0, 7.0)
    world.evaluate("d", "pgd", some(6, 5), distance=far, label=label)
    here = load_results(store, find_leaderboard(store, "linf")).defenses["d"].attacks["pgd"]
    assert here.distance.tolist() == [np.inf] * 5 + [6.0], "within a radius the verdict decides"

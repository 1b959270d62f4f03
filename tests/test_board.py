"""What a board shows, from real stores with outcomes made by hand."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as counted
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.board import Row, boards, entry, find, matrix, ranking, report
from bench.board.entry import falling
from bench.board.flags import verdict
from bench.board.played import load
from bench.board.render import render
from bench.board.signs import Flag, asks_gradients, chance, is_blind, paired_error
from bench.profile import Profile
from bench.records import BenchError, CellState, Culprit, Failure, KeptImage
from bench.registry import Registry
from bench.store import Certificate, Store
from tests.small_store import Bits, World, first, outcomes, some

ALL = first(600)
NONE = first(0)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is created and migrated once, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "bench.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copy(empty, tmp_path / "bench.db")
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


@pytest.fixture
def world(store: Store) -> World:
    """One board, `linf`, that requires fgsm and pgd."""
    made = World(store)
    made.threat("linf", "fgsm", "pgd")
    made.attack("fgsm", steps=1)
    made.attack("pgd", steps=40)
    return made


@contextmanager
def small(empty: Path, n: int) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(empty, f"{folder}/bench.db")
        with Store.open(f"sqlite:///{copy}") as opened:
            made = World(opened, n=n)
            made.threat("linf", "a0")
            yield made


def enter(world: World, name: str, right: Bits, *broken: Bits) -> None:
    """A defense with its clean pass, and what fgsm and pgd broke."""
    world.defense(name)
    world.clean(name, right)
    for attack, bits in zip(("fgsm", "pgd"), broken, strict=False):
        world.play(name, attack, bits)


def rows_of(world: World, threat: str = "linf") -> dict[str, Row]:
    return {row.defense: row for row in ranking(world.store, find(world.store, threat))}


def flag_of(world: World, name: str, defense: str = "d", threat: str = "linf") -> Flag:
    return {flag.name: flag for flag in rows_of(world, threat)[defense].flags}[name]


# Robust accuracy.


def test_robust_is_the_worst_case_by_example_and_not_the_least_of_the_means(world: World) -> None:
    enter(world, "d", first(500), some(600, 0, 1), some(600, 1, 2, 3, 599))
    row = rows_of(world)["d"]
    assert (row.clean.k, row.robust.k, row.robust.n) == (500, 496, 600)
    assert row.strongest == "pgd"
    alone = [s.robust and s.robust.k for s in matrix(world.store, find(world.store, None))]
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
    assert {square.attack for square in matrix(world.store, find(world.store, None))} == {
        "fgsm",
        "pgd",
    }


def test_a_card_without_a_digest_leaves_the_newest_version_standing(world: World) -> None:
    enter(world, "d", ALL, first(100), first(100))
    world.defense("d", version="2")
    enter_again = world.cell("d", "pgd")
    world.clean("d", ALL)
    world.record(enter_again, outcomes(first(30)))
    world.unbuilt("d")
    assert rows_of(world)["d"].robust.k == 570
    assert "fgsm" not in load(world.store, find(world.store, None)).standings["d"].bouts


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
    assert [(b.n, b.mode) for b in boards(world.store)] == [
        (600, "full"),
        (600, "rank"),
        (100, "full"),
    ]
    assert rows_of(world)["d"].robust.k == 591


def test_boards_stand_in_the_order_of_their_threats(world: World) -> None:
    world.threat("zero", order=0)
    enter(world, "d", ALL, NONE, NONE)
    world.play("d", "pgd", NONE, threat="zero")
    assert [board.name for board in boards(world.store)] == ["zero", "linf"]
    assert find(world.store, None).name == "zero"


def test_all_seeds_of_an_attack_are_one_square(world: World) -> None:
    enter(world, "d", ALL, NONE)
    world.play("d", "pgd", some(600, 1), seed=0)
    world.play("d", "pgd", some(600, 2), seed=1)
    (square,) = [s for s in matrix(world.store, find(world.store, "linf")) if s.attack == "pgd"]
    assert square.robust is not None
    assert (square.robust.k, square.gradients, square.seconds) == (598, 2400, 1.0)


def test_a_board_of_all_targets_counts_the_worst_target_of_each_example(store: Store) -> None:
    world = World(store, n=4, classes=3)
    world.threat("all", goal="targeted", rule="all")
    world.attack("pgd")
    world.defense("d")
    world.clean("d", np.ones(4, np.bool_))
    # Items are (example, target): 0, 1 belong to example 0; 6, 7 to example 3.
    world.play("d", "pgd", some(8, 0, 5, 6, 7), threat="all")
    board = find(store, "all")
    assert load(store, board).standings["d"].robust().tolist() == [False, True, False, False]
    assert ranking(store, board)[0].robust.k == 1


def test_in_a_cascade_a_square_counts_those_it_met(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    world.play("d", "fgsm", first(200), mode="rank")
    survivors = np.arange(200, 600, dtype=np.int32)
    world.play("d", "pgd", first(100, 400), items=survivors, mode="rank")
    board = find(world.store, None, "rank")
    squares = {s.attack: s.robust for s in matrix(world.store, board)}
    assert squares["pgd"] is not None
    assert (squares["pgd"].k, squares["pgd"].n) == (300, 400)
    (row,) = ranking(world.store, board)
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
    board = find(world.store, None, "rank")
    (row,) = ranking(world.store, board)
    assert (row.robust.k, row.coverage.done, row.provisional) == (300, 2, False)
    world.attack("fgsm", steps=1, version="2")
    assert ranking(world.store, board) == []
    world.play("d", "fgsm", first(10), mode="rank")
    (row,) = ranking(world.store, board)
    assert (row.robust.k, row.coverage.done, row.provisional) == (590, 1, True)


def test_a_cascade_tells_apart_only_what_it_can(world: World) -> None:
    """fgsm is not required: how many pgd alone would leave is unknown until it met all."""
    world.threat("linf", "pgd")
    world.defense("d")
    world.clean("d", ALL)
    before = world.play("d", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.play("d", "pgd", first(100, 400), items=left, mode="rank", before=before.key)
    (row,) = ranking(world.store, find(world.store, None, "rank"))
    assert (row.robust.k, row.robust_required.n) == (300, 0)
    world.play("d", "pgd", first(250), mode="rank")
    (row,) = ranking(world.store, find(world.store, None, "rank"))
    assert (row.robust.k, row.robust_required.k, row.robust_required.n) == (300, 300, 600)


def test_a_profile_counts_its_own_attacks_once_all_are_done(world: World) -> None:
    world.attack("cw")
    world.defense("d")
    world.clean("d", ~first(10))
    battery = Profile("two", {"Linf": ("fgsm", "pgd")}, "", "")
    world.play("d", "fgsm", first(20))
    world.play("d", "cw", first(500))
    (row,) = report(world.store, None, "full", battery)["ranking"]
    assert row["profile"] == {"done": 1, "attacks": 2, "robust": None}
    world.play("d", "pgd", some(600, 5, 100))
    told = report(world.store, None, "full", battery)
    (row,) = told["ranking"]
    assert told["profile"] == {"name": "two", "attacks": ["fgsm", "pgd"]}
    assert (row["robust"]["k"], row["profile"]["robust"]["k"]) == (100, 579)
    console = Console(width=200, file=io.StringIO())
    console.print(render(told))
    assert "579/600" in console.file.getvalue()  # type: ignore[attr-defined]
    assert report(world.store)["ranking"][0]["profile"] is None


# Ranks.


def test_ranks_are_ranges_from_paired_tests(world: World) -> None:
    enter(world, "strong", ALL, NONE, first(100))
    enter(world, "peer", ALL, NONE, first(103))
    enter(world, "weak", ALL, NONE, first(400))
    found = [(row.defense, row.rank) for row in ranking(world.store, find(world.store, None))]
    assert found == [("strong", (1, 2, 1)), ("peer", (1, 2, 1)), ("weak", (3, 3, 2))]


def test_an_entry_without_a_required_attack_is_provisional_and_moves_nobody(world: World) -> None:
    enter(world, "whole", ALL, first(100), first(300))
    enter(world, "part", ALL, first(100))
    whole, part = ranking(world.store, find(world.store, None))
    assert (whole.defense, whole.rank, whole.provisional) == ("whole", (1, 1, 1), False)
    assert (part.rank, part.provisional, part.coverage.done, part.coverage.required) == (
        None,
        True,
        1,
        2,
    )
    assert "1 of 2 required" in part.note


@pytest.mark.parametrize("state", [CellState.SKIPPED, CellState.MISSING])
def test_what_is_skipped_or_missing_is_never_a_figure(world: World, state: CellState) -> None:
    enter(world, "d", ALL, first(100))
    world.plan(world.cell("d", "pgd"), state, "No time.")
    row = rows_of(world)["d"]
    assert (row.rank, row.robust.k) == (None, 500)
    (square,) = [s for s in matrix(world.store, find(world.store, None)) if s.attack == "pgd"]
    assert (square.state, square.reason, square.robust) == (str(state), "No time.", None)


def test_a_failed_cell_has_its_reason_and_no_figure(world: World) -> None:
    enter(world, "d", ALL, first(100))
    cell = world.cell("d", "pgd")
    world.plan(cell)
    lease = world.store.lease(cell.key, "away@another-host")
    assert lease is not None
    world.store.fail(lease, Failure(Culprit.PLUGIN, "It divided by zero."))
    (square,) = [s for s in matrix(world.store, find(world.store, None)) if s.attack == "pgd"]
    assert (square.state, square.reason, square.robust) == ("failed", "It divided by zero.", None)
    assert rows_of(world)["d"].provisional


def test_a_required_attack_that_does_not_apply_is_not_asked_of_the_entry(world: World) -> None:
    enter(world, "d", ALL, first(100))
    world.plan(world.cell("d", "pgd"), CellState.NOT_APPLICABLE, "Its own twin.")
    row = rows_of(world)["d"]
    assert (row.rank, row.coverage.done, row.coverage.required) == ((1, 1, 1), 1, 1)


def test_where_no_attack_applies_there_is_no_rank(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    for attack in ("fgsm", "pgd"):
        world.plan(world.cell("d", attack), CellState.NOT_APPLICABLE, "Nothing to climb.")
    row = rows_of(world)["d"]
    assert (row.rank, row.provisional, row.strongest) == (None, True, None)


def test_without_a_clean_pass_nothing_is_known(world: World) -> None:
    world.defense("d")
    world.play("d", "fgsm", NONE)
    world.play("d", "pgd", NONE)
    row = rows_of(world)["d"]
    assert (row.rank, row.robust.k, row.robust.n, row.robust.high) == (None, 0, 0, 1.0)
    assert "clean pass" in row.note


def test_with_few_examples_nobody_holds_the_first_place(store: Store) -> None:
    world = World(store, n=499)
    world.threat("linf")
    world.attack("pgd")
    for name, broken in (("good", 50), ("bad", 400)):
        world.defense(name)
        world.clean(name, first(499, 499))
        world.play(name, "pgd", first(broken, 499))
    good, bad = ranking(store, find(store, None))
    assert good.low_n
    assert (good.rank, bad.rank) == ((2, 2, 1), (2, 2, 2))
    assert "fewer than 500" in good.note


def test_five_hundred_examples_are_enough_for_a_first_place(store: Store) -> None:
    world = World(store, n=500)
    world.threat("linf")
    world.attack("pgd")
    world.defense("d")
    world.clean("d", first(500, 500))
    world.play("d", "pgd", first(50, 500))
    (row,) = ranking(store, find(store, None))
    assert (row.rank, row.low_n, row.note) == ((1, 1, 1), False, "")


def test_a_board_that_is_evidence_ranks_nobody(world: World) -> None:
    world.threat("shown", ranked=False)
    world.defense("d")
    world.clean("d", ALL)
    world.play("d", "pgd", NONE, threat="shown")
    row = rows_of(world, "shown")["d"]
    assert row.rank is None
    assert "evidence" in row.note


# Signs.


def test_one_step_that_beats_many_is_raised_with_its_numbers(world: World) -> None:
    enter(world, "d", first(550), first(120), some(600, *range(80), 590))
    flag = flag_of(world, "one-step-beats-iterative")
    assert flag.state == "raised"
    # The difference is 40 with s.e. sqrt(40 - 1600 / 600) = 6.1; example 590 was never right.
    assert "fgsm breaks 120 of 600 and pgd 80" in flag.evidence
    assert "+40 with a standard error of 6.1; 40 fell to fgsm" in flag.evidence


@pytest.mark.parametrize(("ahead", "state"), [(3, "clear"), (5, "raised")])
def test_one_step_must_lead_by_two_standard_errors(world: World, ahead: int, state: str) -> None:
    enter(world, "d", ALL, first(100 + ahead), first(100))
    assert flag_of(world, "one-step-beats-iterative").state == state


def test_a_one_step_attack_that_only_differs_is_clear(world: World) -> None:
    enter(world, "d", ALL, first(100), ~first(500))
    assert flag_of(world, "one-step-beats-iterative").state == "clear"


def test_one_step_is_compared_with_the_best_iterative_attack(world: World) -> None:
    world.attack("pgd-margin")
    enter(world, "d", ALL, first(300), first(100))
    world.play("d", "pgd-margin", first(400))
    flag = flag_of(world, "one-step-beats-iterative")
    assert (flag.state, "pgd-margin" in flag.evidence) == ("clear", True)


@pytest.mark.parametrize(("only", "state"), [(6, "clear"), (7, "raised")])
@pytest.mark.parametrize(
    ("name", "needs", "source"),
    [("boundary", "labels", ""), ("square", "scores", ""), ("transfer", "nothing", "twin")],
)
def test_a_black_box_that_finds_what_gradients_miss_is_raised(
    world: World, only: int, state: str, name: str, needs: str, source: str
) -> None:
    world.attack(name, needs, source=source)
    enter(world, "d", ~first(1), first(50), first(100))
    world.play("d", name, some(600, 0, 1, 2, *range(100, 100 + only)))
    flag = flag_of(world, "black-box-beats-white-box")
    assert flag.state == state
    assert f"{only} of 600 fell to {name}" in flag.evidence
    assert flag_of(world, "random-beats-gradient").state == "not tested"


def test_a_transfer_that_climbs_gradients_of_its_source_is_still_a_black_box(
    world: World,
) -> None:
    world.attack("transfer", "gradients", source="twin")
    enter(world, "d", ALL, NONE, NONE)
    world.play("d", "transfer", first(50))
    assert flag_of(world, "black-box-beats-white-box").state == "raised"


@pytest.mark.parametrize(("only", "state"), [(1, "clear"), (2, "raised")])
def test_chance_that_finds_what_gradients_miss_is_raised(
    world: World, only: int, state: str
) -> None:
    world.attack("random", "nothing", steps=1)
    enter(world, "d", ALL, NONE, NONE)
    world.play("d", "random", first(only))
    assert flag_of(world, "random-beats-gradient").state == state


def test_without_attacks_of_both_kinds_a_sign_is_not_tested_rather_than_clear(
    world: World,
) -> None:
    enter(world, "d", ALL, NONE)
    states = {flag.name: flag.state for flag in rows_of(world)["d"].flags}
    assert states == dict.fromkeys(
        [
            "one-step-beats-iterative",
            "black-box-beats-white-box",
            "unbounded-falls-short",
            "random-beats-gradient",
            "larger-bound-does-not-help",
            "not-converged",
            "soundness-error",
        ],
        "not tested",
    )


@pytest.mark.parametrize(("left", "state"), [(0, "clear"), (1, "raised")])
def test_whoever_stands_with_the_whole_box_allowed_is_suspect(
    world: World, left: int, state: str
) -> None:
    world.threat("box", eps=1.0, ranked=False, order=9)
    world.attack("unbounded")
    enter(world, "d", ~first(5), NONE, NONE)
    world.play("d", "unbounded", ~first(5 + left), threat="box")
    flag = flag_of(world, "unbounded-falls-short")
    assert flag.state == state
    assert f"{left} of 600 still stand against unbounded" in flag.evidence
    assert flag_of(world, "unbounded-falls-short", threat="box") == flag


@pytest.mark.parametrize(("lost", "state"), [(6, "clear"), (7, "raised")])
def test_what_falls_within_a_small_radius_must_fall_within_a_larger_one(
    world: World, lost: int, state: str
) -> None:
    world.threat("near", eps=0.1)
    enter(world, "d", ALL, NONE, ~first(lost))
    world.play("d", "pgd", first(100), threat="near")
    flag = flag_of(world, "larger-bound-does-not-help")
    assert (flag.state, f"{lost} of 600 fell within 0.1" in flag.evidence) == (state, True)
    assert flag_of(world, "larger-bound-does-not-help", threat="near").state == "not tested"


@pytest.mark.parametrize(("late", "state"), [(10, "clear"), (11, "raised")])
def test_a_search_that_still_finds_at_its_end_is_not_converged(
    world: World, late: int, state: str
) -> None:
    steps = np.where(np.arange(600) < late, 37, np.where(np.arange(600) < 200, 36, -1))
    # The last ten were never right: they are broken before the first step, which proves nothing.
    enter(world, "d", first(590), NONE)
    world.play("d", "pgd", first(200) | ~first(590), step=np.where(first(590), steps, 0))
    flag = flag_of(world, "not-converged")
    assert (flag.state, f"{late} of 200 first" in flag.evidence) == (state, True)


def test_an_example_is_late_only_if_every_attack_that_breaks_it_is(world: World) -> None:
    world.attack("bim", steps=10)
    enter(world, "d", ALL, NONE)
    world.play("d", "pgd", first(200), step=np.where(first(200), 40, -1))
    assert flag_of(world, "not-converged").state == "raised"
    world.play("d", "bim", first(200), step=np.where(first(200), 2, -1))
    assert flag_of(world, "not-converged").state == "clear"


def certify(world: World, bits: Bits, certifier: str = "linear", *, exact: bool = True) -> None:
    """A certifier that was not declared is; the proof is by its source as declared."""
    if ("certifier", certifier) not in world.digests:
        world.tool("certifier", certifier)
    whose = ("d", world.digests["defense", "d"], certifier, world.digests["certifier", certifier])
    found = Certificate(*whose, exact, bits)
    world.store.certify(world.threats["linf"], world.examples, found)


@pytest.mark.parametrize("exact", [True, False])
def test_a_proof_that_a_verified_attempt_contradicts_makes_the_row_invalid(
    world: World, exact: bool
) -> None:
    enter(world, "d", ALL, NONE, first(100))
    certify(world, ~first(100), exact=exact)
    row = rows_of(world)["d"]
    assert (row.verdict, row.rank) == ("sound", (1, 1, 1))
    assert row.certified is not None
    assert (row.certified.count.k, row.certified.certifier) == (500, "linear")
    certify(world, ~first(99), exact=exact)
    row = rows_of(world)["d"]
    assert (row.verdict, row.rank) == ("invalid", None)
    flag = flag_of(world, "soundness-error")
    assert (flag.state, "1 are broken" in flag.evidence) == ("raised", True)


def test_a_proof_of_other_code_is_none_until_it_is_made_again(world: World) -> None:
    enter(world, "d", ALL, NONE, NONE)
    certify(world, ALL)
    assert rows_of(world)["d"].certified is not None
    world.tool("certifier", "linear", source="mended")
    assert rows_of(world)["d"].certified is None
    assert flag_of(world, "soundness-error").state == "not tested"
    certify(world, ~first(600))
    found = rows_of(world)["d"].certified
    assert found is not None and found.count.k == 0


def test_a_refuted_proof_names_its_examples(world: World) -> None:
    broken = np.isin(np.arange(600), [7, 41, 599])
    enter(world, "d", ALL, NONE, broken)
    certify(world, ALL, "honest-looking", exact=False)
    certify(world, ~broken, "careful", exact=False)
    flag = flag_of(world, "soundness-error")
    assert flag.state == "raised"
    assert flag.evidence == (
        "Of 600 examples proved by honest-looking, 3 are broken by a verified attempt"
        " (number 7, 41, 599)."
    )


def test_a_proof_is_refuted_by_what_fell_within_a_smaller_radius(world: World) -> None:
    world.threat("near", eps=0.1)
    enter(world, "d", ALL, NONE, NONE)
    certify(world, ALL)
    assert flag_of(world, "soundness-error").state == "clear"
    world.play("d", "pgd", first(1), threat="near")
    flag = flag_of(world, "soundness-error")
    assert (flag.state, "1 are broken" in flag.evidence) == ("raised", True)
    assert flag_of(world, "soundness-error", threat="near").state == "not tested"


def test_every_radius_shows_what_is_proved_under_what_attacks_left(world: World) -> None:
    world.tool("certifier", "smoothing", error=0.001)
    world.threat("near", eps=0.1)
    enter(world, "d", ALL, NONE, first(300))
    world.play("d", "pgd", first(200), threat="near")
    certify(world, ~first(450))
    certify(world, ~first(400), "smoothing", exact=False)
    near, here = entry(world.store, find(world.store, "linf"), "d").points
    assert near.certified is None and near.robust.k == 400
    assert here.certified is not None and here.robust.k == 300
    assert (here.certified.certifier, here.certified.count.k) == ("smoothing", 200)
    assert (here.certified.exact, here.certified.error) == (False, 0.001)


def test_a_proof_of_a_clean_mistake_is_a_soundness_error(world: World) -> None:
    enter(world, "d", ~first(1), NONE, NONE)
    certify(world, ALL)
    assert flag_of(world, "soundness-error").state == "raised"


@pytest.mark.parametrize(("wrong", "state"), [(1, "clear"), (30, "raised")])
def test_a_statistical_proof_may_err_as_often_as_it_says(
    world: World, wrong: int, state: str
) -> None:
    world.tool("certifier", "smoothing", error=0.001)
    enter(world, "d", ALL, NONE, first(wrong))
    certify(world, ALL, "smoothing", exact=False)
    assert flag_of(world, "soundness-error").state == state


def test_diagnostics_stand_beside_the_signs_and_unasked_ones_are_not_clear(world: World) -> None:
    world.tool("diagnostic", "zero-gradients")
    world.tool("diagnostic", "deterministic")
    enter(world, "d", ALL, NONE, NONE)
    key = world.digests["defense", "d"]
    world.store.note("d", key, world.examples, "zero-gradients", "raised", "32 of 32 are zero.")
    assert flag_of(world, "zero-gradients") == Flag(
        "zero-gradients", "raised", "32 of 32 are zero."
    )
    assert flag_of(world, "deterministic").state == "not tested"
    assert rows_of(world)["d"].verdict == "suspect"
    world.store.note("d", key, world.examples, "deterministic", "raised", "It moves.")
    assert rows_of(world)["d"].verdict == "invalid"


def test_a_verdict_is_the_worst_raised_flag() -> None:
    clear, doubt = Flag("x", "clear", ""), Flag("y", "raised", "")
    assert verdict([clear, Flag("z", "not tested", "")]) == "sound"
    assert verdict([clear, doubt]) == "suspect"
    assert verdict([doubt, Flag("soundness-error", "raised", "")]) == "invalid"
    assert verdict([Flag("soundness-error", "clear", "")]) == "sound"


def test_the_paired_error_is_that_of_a_difference_of_two_counts() -> None:
    # n (b + c) / n - (b - c)^2 / n, by hand for b = 9, c = 1, n = 16: 10 - 4 = 6.
    assert paired_error(9, 1, 16) == pytest.approx(6**0.5)
    assert paired_error(0, 0, 0) == 0


def test_a_tolerance_is_a_share_but_never_nothing() -> None:
    assert [chance(0.01, n) for n in (10, 100, 250, 600)] == [1, 1, 2, 6]


# Claims.


@pytest.mark.parametrize(
    ("claimed", "complete", "said"),
    [(0.5, True, "holds"), (0.53, True, "holds"), (0.6, True, "below"), (0.6, False, "below"),
     (0.5, False, "not testable")],
)  # fmt: skip
def test_a_claim_is_compared_with_the_interval(
    world: World, claimed: float, complete: bool, said: str
) -> None:
    world.defense("d", {"threat": "linf", "robust": claimed, "cite": "arXiv:0000.00000"})
    world.clean("d", ALL)
    world.play("d", "pgd", first(300))
    if complete:
        world.play("d", "fgsm", NONE)
    claim = rows_of(world)["d"].claim
    assert claim is not None
    assert (claim.verdict, claim.robust) == (said, claimed)
    assert "300 of 600" in claim.sentence


def test_a_claim_under_other_rules_is_no_claim_here(world: World) -> None:
    world.defense("d", {"threat": "l2", "robust": 0.9})
    world.play("d", "pgd", ALL)
    assert rows_of(world)["d"].claim is None


# Curves and entries.


def test_a_staircase_falls_where_examples_fell() -> None:
    spent = np.array([1.0, 3.0, 3.0, np.inf, 2.0, 0.0])
    clean = np.array([True, True, True, True, False, True])
    curve = falling(spent, clean)
    assert curve.x.tolist() == [0, 1, 3]
    assert curve.right.tolist() == [4, 3, 1]
    assert curve.n == 6


def test_a_staircase_of_nobody_is_flat() -> None:
    curve = falling(np.full(3, np.inf), np.array([True, True, False]))
    assert (curve.x.tolist(), curve.right.tolist()) == ([0], [2])


def test_steps_of_earlier_runs_count_in_the_curve(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    step, run = np.where(first(2), 5, -1), np.where(some(600, 1), 2, 0)
    world.play("d", "pgd", first(2), step=step, run=run)
    found = entry(world.store, find(world.store, None), "d")
    assert found.steps["pgd"].x.tolist() == [0, 5, 85]
    assert found.steps["pgd"].right.tolist() == [600, 599, 598]
    assert found.forwards["pgd"].x.tolist() == [0, 3]


def test_a_distance_board_gives_the_whole_curve_and_other_radii_give_points(world: World) -> None:
    enter(world, "d", ~first(100), NONE, first(300))
    world.threat("near", "pgd", eps=0.1)
    world.play("d", "pgd", first(200), threat="near")
    world.threat("nearest", goal="nearest", ranked=False)
    # Beyond the radius of its board an offer is held; where its label is wrong it has a distance.
    world.attack("deepfool")
    far = np.linspace(0, 0.599, 600)
    world.play("d", "deepfool", first(201), distance=far, label=first(500), threat="nearest")
    found = entry(world.store, find(world.store, "linf"), "d")
    curve = found.distances["deepfool"]
    at = {x: int(k) for x, k in zip(np.round(curve.x, 6), curve.right, strict=True)}
    assert (at[0.0], at[0.1], at[0.3], at[0.499]) == (500, 499, 299, 100)
    assert curve.right.min() == 100
    assert [(p.radius, p.robust.k, p.complete) for p in found.points] == [
        (0.1, 400, True),
        (0.2, 300, True),
    ]
    assert entry(world.store, find(world.store, "nearest"), "d").points == ()


def test_an_entry_brings_its_row_its_squares_and_its_images(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    adv = np.full((1, 2, 2), 0.5, np.float32)
    kept = KeptImage(3, np.zeros((1, 2, 2), np.uint8), adv, 0, 0, 0.9, 1, 0.8)
    world.record(world.cell("d", "pgd"), outcomes(first(9)), images=(kept,))
    found = entry(world.store, find(world.store, None), "d")
    assert found.row.robust.k == 591
    assert [square.attack for square in found.squares] == ["fgsm", "pgd"]
    assert [image.item for image in found.images["pgd"]] == [3]


def test_an_unknown_board_or_entry_is_refused_with_what_is_known(world: World) -> None:
    with pytest.raises(BenchError, match="no board yet"):
        report(world.store)
    enter(world, "d", ALL, NONE)
    with pytest.raises(BenchError, match=r"'lnif'.*Did you mean 'linf'"):
        report(world.store, "lnif")
    with pytest.raises(BenchError, match="played: d"):
        entry(world.store, find(world.store, None), "e")


# The report.


def test_the_report_has_the_promised_shape_and_is_json(world: World) -> None:
    world.threat("linf", "fgsm", "pgd")
    enter(world, "d", ALL, first(10), first(20))
    certify(world, ~first(20))
    said = json.loads(json.dumps(report(world.store), allow_nan=False))
    assert said["schema"] == 1
    assert said["threat"].keys() >= {"id", "name", "dataset", "set", "access", "goal", "budget"}
    assert said["examples"] == {"n": 600, "digest": "examples"}
    (row,) = said["ranking"]
    assert row["rank"] == [1, 1]
    assert row["robust"].keys() == {"k", "n", "low", "high"}
    assert row["robust"]["low"] < 580 / 600 < row["robust"]["high"]
    assert row["coverage"] == {"done": 2, "required": 2}
    assert row["flags"][0].keys() == {"name", "state", "evidence"}
    assert row["certified"]["k"] == 580
    assert row["certified"].keys() >= {"certifier", "exact", "error"}
    assert row.keys() >= {"clean", "robust_required", "strongest", "verdict", "claim", "tier"}
    square = said["matrix"][1]
    assert (square["attack"], square["state"], square["robust"]["k"]) == ("pgd", "done", 580)
    assert square.keys() >= {"reason", "out_of_ball", "fragile", "forwards", "gradients", "seconds"}
    assert len(said["digest"]) == 64


COLUMN = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda bits: np.array(bits))


@settings(max_examples=12, deadline=None)
@given(COLUMN, st.lists(COLUMN, min_size=1, max_size=3))
def test_the_worst_case_is_at_most_the_least_and_another_attack_never_raises_it(
    empty: Path, right: Bits, broken: list[Bits]
) -> None:
    with small(empty, 12) as world:
        world.defense("d")
        world.clean("d", right)
        before = int(right.sum())
        for number, bits in enumerate(broken):
            world.attack(f"a{number}")
            world.play("d", f"a{number}", bits)
            said = report(world.store)
            robust = said["ranking"][0]["robust"]["k"]
            alone = [s["robust"]["k"] for s in said["matrix"] if s["robust"]]
            assert robust <= before
            assert robust <= min(alone)
            before = robust
        expected = sum(
            bool(ok) and not any(bits[i] for bits in broken) for i, ok in enumerate(right)
        )
        assert before == expected


@st.composite
def play_orders(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    order = draw(st.permutations(range(12)))
    cuts = draw(st.lists(st.integers(1, 11), unique=True, max_size=4))
    return list(order), [0, *sorted(cuts), 12]


def _digest(empty: Path, broken: list[Bits], how: Any, cells: list[int]) -> str:
    with small(empty, 12) as world:
        world.defense("d")
        for number in cells:
            world.attack(f"a{number}")
            order, cuts = how
            chunks = [order[a:b] for a, b in pairwise(cuts)]
            found = outcomes(broken[number], forwards=np.arange(12) + next(CLOCK))
            world.record(world.cell("d", f"a{number}"), found, chunks=chunks)
        digest: str = report(world.store)["digest"]
        return digest


CLOCK = counted()


@settings(max_examples=10, deadline=None)
@given(COLUMN, COLUMN, play_orders())
def test_the_digest_depends_on_verdicts_alone(empty: Path, one: Bits, two: Bits, how: Any) -> None:
    straight = list(range(12)), [0, 12]
    first_digest = _digest(empty, [one, two], straight, [0, 1])
    assert _digest(empty, [one, two], how, [1, 0]) == first_digest
    flipped = one ^ some(12, how[0][0])
    assert _digest(empty, [flipped, two], how, [0, 1]) != first_digest


# The terminal.


def test_the_terminal_shows_counts_intervals_ranks_coverage_and_flags(world: World) -> None:
    world.attack("random", "nothing", steps=1)
    enter(world, "d", ALL, NONE, NONE)
    world.play("d", "random", first(60))
    enter(world, "[bold]e", ALL, first(9))
    console = Console(width=200, file=io.StringIO())
    with console.capture() as printed:
        console.print(render(report(world.store)))
    text = printed.get()
    assert "540/600" in text
    assert "87.3-92.2" in text
    assert "suspect 2/4" in text
    assert "random-beats-gradient" in text
    assert "60 of 600 fell to random" in text
    assert "[bold]e: Provisional: 1 of 2 required attacks are done." in text
    assert "missing" in text


# The real producers.


def test_the_built_in_cards_are_read_as_they_are_written(store: Store) -> None:
    cards = Registry.load().cards({"undefended": {"digits": "weights"}})
    store.declare(cards)
    attacks = {card.name: card for card in cards if card.kind == "attack"}
    assert asks_gradients(attacks["pgd"])
    assert not asks_gradients(attacks["transfer"])
    assert is_blind(attacks["random"])
    assert not is_blind(attacks["pgd"])
    threat = next(card for card in cards if card.name == "digits-box")
    world = World(store)
    world.threats["digits-box"] = threat.detail["id"]
    world.digests["defense", "undefended"] = "weights"
    world.digests["attack", "unbounded"] = attacks["unbounded"].digest
    world.clean("undefended", ALL)
    world.play("undefended", "unbounded", ALL, threat="digits-box")
    board = find(store, "digits-box")
    assert board.unbounded
    (row,) = ranking(store, board)
    states = {flag.name: flag.state for flag in row.flags}
    assert (row.robust.k, row.rank, states["unbounded-falls-short"]) == (0, None, "clear")
    assert states["zero-gradients"] == "not tested"


def test_boards_and_exports_start_without_torch() -> None:
    code = (
        "import sys, bench.board, bench.board.render, bench.export; print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"

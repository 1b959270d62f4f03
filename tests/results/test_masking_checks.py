"""Gradient-masking checks: each warns or passes by its numbers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.results.masking_checks import MaskingCheck, paired_error, tolerated_count
from bench.results.verdicts import verdict
from bench.store import EvidenceRow
from tests.fixtures.small_store import World, first, some
from tests.results.small_results import ALL, NONE, enter, flag_of, rows_of


def test_a_better_one_step_attack_is_a_warning_with_its_numbers(world: World) -> None:
    enter(world, "d", first(550), first(120), some(600, *range(80), 590))
    flag = flag_of(world, "one-step-beats-iterative")
    assert flag.state == "raised"
    # The difference is 40 with s.e. sqrt(40 - 1600 / 600) = 6.1; example 590 is misclassified.
    assert "fgsm breaks 120 of 600 and pgd 80" in flag.evidence
    assert "+40 with a standard error of 6.1; 40 are broken by fgsm" in flag.evidence


@pytest.mark.parametrize(("ahead", "state"), [(3, "clear"), (5, "raised")])
def test_one_step_must_lead_by_two_standard_errors(world: World, ahead: int, state: str) -> None:
    enter(world, "d", ALL, first(100 + ahead), first(100))
    assert flag_of(world, "one-step-beats-iterative").state == state


def test_a_one_step_attack_that_only_differs_passes(world: World) -> None:
    enter(world, "d", ALL, first(100), ~first(500))
    assert flag_of(world, "one-step-beats-iterative").state == "clear"


def test_one_step_is_compared_with_the_best_iterative_attack(world: World) -> None:
    world.attack("pgd-margin")
    enter(world, "d", ALL, first(300), first(100))
    world.evaluate("d", "pgd-margin", first(400))
    flag = flag_of(world, "one-step-beats-iterative")
    assert (flag.state, "pgd-margin" in flag.evidence) == ("clear", True)


@pytest.mark.parametrize(("only", "state"), [(6, "clear"), (7, "raised")])
@pytest.mark.parametrize(
    ("name", "needs", "source"),
    [("boundary", "labels", ""), ("square", "scores", ""), ("transfer", "nothing", "surrogate")],
)
def test_a_black_box_attack_that_breaks_what_gradients_miss_is_a_warning(
    world: World, only: int, state: str, name: str, needs: str, source: str
) -> None:
    world.attack(name, needs, source=source)
    enter(world, "d", ~first(1), first(50), first(100))
    world.evaluate("d", name, some(600, 0, 1, 2, *range(100, 100 + only)))
    flag = flag_of(world, "black-box-beats-white-box")
    assert flag.state == state
    assert f"{only} of 600 are broken by {name}" in flag.evidence
    assert flag_of(world, "random-beats-gradient").state == "not tested"


def test_a_transfer_attack_counts_as_black_box(
    world: World,
) -> None:
    world.attack("transfer", "gradients", source="surrogate")
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "transfer", first(50))
    assert flag_of(world, "black-box-beats-white-box").state == "raised"


@pytest.mark.parametrize(("only", "state"), [(1, "clear"), (2, "raised")])
def test_sampling_that_breaks_what_gradients_miss_is_a_warning(
    world: World, only: int, state: str
) -> None:
    world.attack("random", "nothing", steps=1, samples=True)
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "random", first(only))
    assert flag_of(world, "random-beats-gradient").state == state


def test_without_attacks_of_both_kinds_a_check_is_not_tested(
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
def test_unbroken_examples_within_the_whole_box_are_a_warning(
    world: World, left: int, state: str
) -> None:
    world.threat("box", eps=1.0, ranked=False, order=9)
    world.attack("unbounded")
    enter(world, "d", ~first(5), NONE, NONE)
    world.evaluate("d", "unbounded", ~first(5 + left), threat="box")
    flag = flag_of(world, "unbounded-falls-short")
    assert flag.state == state
    assert f"{left} of 600 are unbroken by unbounded" in flag.evidence
    assert flag_of(world, "unbounded-falls-short", threat="box") == flag


@pytest.mark.parametrize(("lost", "state"), [(6, "clear"), (7, "raised")])
def test_examples_broken_within_a_radius_must_break_within_a_larger_one(
    world: World, lost: int, state: str
) -> None:
    world.threat("near", eps=0.1)
    enter(world, "d", ALL, NONE, ~first(lost))
    world.evaluate("d", "pgd", first(100), threat="near")
    flag = flag_of(world, "larger-bound-does-not-help")
    assert (flag.state, f"{lost} of 600 are broken within 0.1" in flag.evidence) == (state, True)
    assert flag_of(world, "larger-bound-does-not-help", threat="near").state == "not tested"


@pytest.mark.parametrize(("late", "state"), [(10, "clear"), (11, "raised")])
def test_an_attack_with_late_first_successes_is_not_converged(
    world: World, late: int, state: str
) -> None:
    steps = np.where(np.arange(600) < late, 37, np.where(np.arange(600) < 200, 36, -1))
    # The last ten are wrong on the clean image and broken before the first step; they do not count.
    enter(world, "d", first(590), NONE)
    world.evaluate("d", "pgd", first(200) | ~first(590), step=np.where(first(590), steps, 0))
    flag = flag_of(world, "not-converged")
    assert (flag.state, f"{late} of 200 first" in flag.evidence) == (state, True)


def test_an_example_is_late_only_if_every_attack_that_breaks_it_is(world: World) -> None:
    world.attack("bim", steps=10)
    enter(world, "d", ALL, NONE)
    world.evaluate("d", "pgd", first(200), step=np.where(first(200), 40, -1))
    assert flag_of(world, "not-converged").state == "raised"
    world.evaluate("d", "bim", first(200), step=np.where(first(200), 2, -1))
    assert flag_of(world, "not-converged").state == "clear"


def test_diagnostics_are_checks_and_those_not_run_are_not_tested(world: World) -> None:
    world.diagnostic("zero-gradients")
    world.diagnostic("deterministic")
    enter(world, "d", ALL, NONE, NONE)
    key = world.digests["defense", "d"]
    zero = EvidenceRow("zero-gradients", "raised", "32 of 32 are zero.", "old")
    world.store.record_evidence("d", key, world.examples, zero)
    assert flag_of(world, "zero-gradients").state == "not tested", "the finding is of older code"
    world.store.record_evidence(
        "d",
        key,
        world.examples,
        zero._replace(source=world.digests["diagnostic", "zero-gradients"]),
    )
    assert flag_of(world, "zero-gradients") == MaskingCheck(
        "zero-gradients", "raised", "32 of 32 are zero."
    )
    assert flag_of(world, "deterministic").state == "not tested"
    assert rows_of(world)["d"].verdict == "suspect"
    source = world.digests["diagnostic", "deterministic"]
    moves = EvidenceRow("deterministic", "raised", "It moves.", source)
    world.store.record_evidence("d", key, world.examples, moves)
    assert rows_of(world)["d"].verdict == "invalid"


def test_a_verdict_is_that_of_the_worst_warning() -> None:
    clear, doubt = MaskingCheck("x", "clear", ""), MaskingCheck("y", "raised", "")
    assert verdict([clear, MaskingCheck("z", "not tested", "")]) == "sound"
    assert verdict([clear, doubt]) == "suspect"
    assert verdict([doubt, MaskingCheck("soundness-error", "raised", "")]) == "invalid"
    assert verdict([MaskingCheck("soundness-error", "clear", "")]) == "sound"


def test_the_paired_error_is_that_of_a_difference_of_two_counts() -> None:
    # n (b + c) / n - (b - c)^2 / n, by hand for b = 9, c = 1, n = 16: 10 - 4 = 6.
    assert paired_error(9, 1, 16) == pytest.approx(6**0.5)
    assert paired_error(0, 0, 0) == 0


def test_a_tolerance_is_a_share_of_at_least_one_example() -> None:
    assert [tolerated_count(0.01, n) for n in (10, 100, 250, 600)] == [1, 1, 2, 6]

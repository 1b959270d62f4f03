"""Gradient-masking checks: each warns or passes by its numbers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.results.masking_checks import MaskingCheck
from bench.results.paired_attacks import P_LIMIT, binomial_tail, tail_of_share
from bench.results.verdicts import verdict
from bench.store import EvidenceRow
from tests.fixtures.small_store import World, first, some
from tests.results.small_results import ALL, NONE, certify, enter, flag_of, rows_of


@pytest.mark.row("E04a")
def test_a_better_one_step_attack_is_a_warning_with_its_numbers(world: World) -> None:
    enter(world, "d", first(550), first(120), some(600, *range(80), 590))
    flag = flag_of(world, "one-step-beats-iterative")
    assert flag.state == "raised"
    # Example 590 is misclassified and counts for neither; p = 2^-40.
    assert "Of 600 examples that both evaluated, fgsm break 120 and pgd 80" in flag.evidence
    assert "40 are broken by the former alone and 0 by the latter alone" in flag.evidence
    assert "a difference of +40, p = 9.1e-13" in flag.evidence
    assert "needs p < 0.001 and a difference of at least 12" in flag.evidence


@pytest.mark.parametrize(("ahead", "state"), [(11, "clear"), (12, "raised")])
def test_one_step_must_lead_by_two_points(world: World, ahead: int, state: str) -> None:
    enter(world, "d", ALL, first(100 + ahead), first(100))
    assert flag_of(world, "one-step-beats-iterative").state == state


@pytest.mark.parametrize(("behind", "state"), [(14, "clear"), (3, "raised")])
def test_one_step_must_lead_significantly(world: World, behind: int, state: str) -> None:
    """A lead of 12: P(X >= 26) of 40 is .04, P(X >= 15) of 18 is .004, P(X >= 12) of 12 2^-12."""
    extra = 12 + behind
    enter(world, "d", ALL, first(100 + extra), some(600, *range(100), *range(400, 400 + behind)))
    p = binomial_tail(extra, extra + behind)
    assert (p < P_LIMIT) == (flag_of(world, "one-step-beats-iterative").state == "raised")
    assert f"p = {p:.2g}" in flag_of(world, "one-step-beats-iterative").evidence


def test_a_one_step_attack_that_only_differs_passes(world: World) -> None:
    enter(world, "d", ALL, first(100), ~first(500))
    assert flag_of(world, "one-step-beats-iterative").state == "clear"


def test_one_step_is_compared_with_the_best_iterative_attack(world: World) -> None:
    world.attack("pgd-margin")
    enter(world, "d", ALL, first(300), first(100))
    world.evaluate("d", "pgd-margin", first(400))
    flag = flag_of(world, "one-step-beats-iterative")
    assert (flag.state, "pgd-margin" in flag.evidence) == ("clear", True)


BLACK_BOX = [
    ("boundary", "labels", ""),
    ("square", "scores", ""),
    ("transfer", "nothing", "surrogate"),
    ("transfer-pgd", "gradients", "learned"),
]


@pytest.mark.parametrize(("more", "state"), [(11, "clear"), (12, "raised")])
@pytest.mark.parametrize(("name", "needs", "source"), BLACK_BOX)
def test_a_black_box_attack_that_breaks_more_than_gradients_is_a_warning(
    world: World, more: int, state: str, name: str, needs: str, source: str
) -> None:
    world.attack(name, needs, source=source)
    enter(world, "d", ~first(1), first(50), first(100))
    world.evaluate("d", name, first(100 + more))
    flag = flag_of(world, "black-box-beats-white-box")
    assert flag.state == state
    assert f"{name} break {99 + more} and fgsm, pgd 99" in flag.evidence
    assert flag_of(world, "random-beats-gradient").state == "not tested"


@pytest.mark.parametrize("lost", [0, 30, 300])
def test_a_black_box_attack_that_only_differs_passes(world: World, lost: int) -> None:
    """Attacks of an honest defense break different examples; the gradients break more."""
    world.attack("square", "scores")
    enter(world, "d", ALL, NONE, first(300))
    world.evaluate("d", "square", first(300 + 30) & ~first(max(lost, 30)))
    assert flag_of(world, "black-box-beats-white-box").state == "clear"


@pytest.mark.row("E04b")
def test_blind_sampling_alone_does_not_test_black_box_attacks(world: World) -> None:
    world.attack("random", "nothing", steps=1, samples=True)
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "random", NONE)
    flag = flag_of(world, "black-box-beats-white-box")
    assert (flag.state, "only blind sampling is done (random)" in flag.evidence) == (
        "not tested",
        True,
    )
    assert flag_of(world, "random-beats-gradient").state == "clear"


@pytest.mark.row("E04d")
@pytest.mark.parametrize(("more", "state"), [(11, "clear"), (12, "raised")])
def test_sampling_that_breaks_more_than_gradients_is_a_warning(
    world: World, more: int, state: str
) -> None:
    world.attack("random", "nothing", steps=1, samples=True)
    enter(world, "d", ALL, NONE, NONE)
    world.evaluate("d", "random", first(more))
    assert flag_of(world, "random-beats-gradient").state == state


@pytest.mark.parametrize(("more", "state"), [(9, "clear"), (10, "raised")])
def test_attacks_are_paired_on_the_examples_that_both_evaluated(
    world: World, more: int, state: str
) -> None:
    """A decision attack on the first 100 examples is not blamed for the other 500."""
    world.attack("boundary", "labels")
    enter(world, "d", ALL, NONE, ~first(100))
    world.evaluate("d", "boundary", first(more, 100), items=np.arange(100, dtype=np.int32))
    flag = flag_of(world, "black-box-beats-white-box")
    assert flag.state == state
    assert f"Of 100 examples that both evaluated, boundary break {more} and fgsm, pgd 0" in (
        flag.evidence
    )


@pytest.mark.parametrize(("right", "state"), [(9, "not tested"), (10, "raised")])
def test_too_few_right_examples_test_nothing(world: World, right: int, state: str) -> None:
    """With 9 paired examples no p-value is below .001; with none there is no comparison."""
    enter(world, "d", first(right), first(right), NONE)
    flag = flag_of(world, "one-step-beats-iterative")
    # Ten of 600 are fewer than two points.
    assert flag.state == ("clear" if state == "raised" else state)
    assert (f"Only {right} of 600" in flag.evidence) == (state == "not tested")


def test_without_a_right_example_nothing_is_tested(world: World) -> None:
    world.threat("near", eps=0.1)
    world.threat("box", eps=1.0, ranked=False, order=9)
    world.attack("unbounded")
    world.attack("square", "scores")
    world.attack("random", "nothing", steps=1, samples=True)
    enter(world, "d", NONE, NONE, NONE)
    world.evaluate("d", "square", NONE)
    world.evaluate("d", "random", NONE)
    world.evaluate("d", "pgd", NONE, threat="near")
    world.evaluate("d", "unbounded", NONE, threat="box")
    certify(world, NONE)
    flags = rows_of(world)["d"].flags
    assert {flag.state for flag in flags} == {"not tested"}, flags


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
            "canaries",
        ],
        "not tested",
    )


@pytest.mark.row("E04c")
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
    assert f"{left} of 595 right examples are unbroken by unbounded" in flag.evidence
    assert flag_of(world, "unbounded-falls-short", threat="box") == flag


@pytest.mark.row("E04c")
@pytest.mark.parametrize(
    ("lost", "open_", "state"),
    [(2, 0, "clear"), (24, 0, "clear"), (25, 0, "raised"), (40, 0, "raised"), (2, 1, "raised")],
)
def test_claims_that_lose_the_vote_of_a_random_defense_may_be_chance(
    world: World, lost: int, open_: int, state: str
) -> None:
    """24 of 595 have a chance of 0.0011 where 2 % lose the vote, 25 of 0.0005."""
    world.threat("box", eps=1.0, ranked=False, order=9)
    world.attack("unbounded")
    enter(world, "d", ~first(5), NONE, NONE)
    claimed = (~first(5) & ~first(5 + open_)).astype(np.int8)
    world.evaluate("d", "unbounded", ~first(5 + open_ + lost), threat="box", claimed=claimed)
    flag = flag_of(world, "unbounded-falls-short")
    assert flag.state == state
    assert f"{lost + open_} of 595 right examples are unbroken by unbounded, {lost} of them" in (
        flag.evidence
    )


@pytest.mark.parametrize(("late", "state"), [(21, "clear"), (22, "raised")])
def test_an_attack_with_late_first_successes_is_not_converged(
    world: World, late: int, state: str
) -> None:
    """P(X >= 21) of 200 with a share of 5 % is .0012, P(X >= 22) is .0005."""
    steps = np.where(np.arange(600) < late, 37, np.where(np.arange(600) < 200, 20, -1))
    # The last ten are wrong on the clean image and broken before the first step; they do not count.
    enter(world, "d", first(590), NONE)
    world.evaluate("d", "pgd", first(200) | ~first(590), step=np.where(first(590), steps, 0))
    flag = flag_of(world, "not-converged")
    assert f"{late} of 200 first" in flag.evidence
    assert f"last doubling gained {late} of 600" in flag.evidence
    gained = tail_of_share(late, 600, 0.01)
    assert flag.state == ("raised" if gained < P_LIMIT else state)


@pytest.mark.row("E10")
@pytest.mark.parametrize(("gained", "state"), [(15, "clear"), (16, "raised")])
def test_a_last_doubling_that_gains_is_not_converged(world: World, gained: int, state: str) -> None:
    """P(X >= 15) of 600 with a share of 1 % is .0013, P(X >= 16) is .0004."""
    steps = np.where(np.arange(600) < gained, 21, np.where(np.arange(600) < 300, 20, -1))
    enter(world, "d", ALL, NONE)
    world.evaluate("d", "pgd", first(300), step=steps)
    assert flag_of(world, "not-converged").state == state


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
    older = flag_of(world, "zero-gradients")
    assert (older.state, older.evidence.endswith("older version of this check.")) == (
        "raised",
        True,
    )
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


@pytest.mark.parametrize(("certified", "state"), [(0, "not tested"), (1, "clear")])
def test_no_certificate_refutes_nothing(world: World, certified: int, state: str) -> None:
    enter(world, "d", ALL, ~first(5), NONE)
    certify(world, first(certified))
    assert flag_of(world, "soundness-error").state == state


def test_certificates_without_an_attack_are_not_tested(world: World) -> None:
    enter(world, "d", ALL)
    world.plan(world.cell("d", "pgd"))
    certify(world, first(5))
    assert flag_of(world, "soundness-error").state == "not tested"

"""Further measures: each against its definition on outcomes that a test chooses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core.cells import CLEAN
from bench.results.example_results import DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import find_leaderboard, leaderboards
from bench.results.measures import (
    ConfidenceDrop,
    Measures,
    confidence_drop,
    distortion_curve,
    measures,
    robust_on_correct,
)
from bench.store import Store
from tests.fixtures.small_store import Bits, World, first, outcomes, some
from tests.results.small_results import ALL, NONE, enter, small


@pytest.fixture
def mixed(store: Store) -> Iterator[World]:
    """Six examples of three classes, with the attacks fgsm and pgd."""
    made = World(store, n=6, labels=np.array([0, 0, 1, 1, 2, 2], np.int16))
    made.threat("linf", "pgd")
    made.attack("pgd", steps=40, parameters={"restarts": 1})
    made.attack("fgsm", steps=1)
    made.defense("d")
    yield made


def clean_pass(world: World, wrong: Bits, **columns: Any) -> None:
    world.record(world.cell("d", CLEAN), outcomes(wrong, **columns))


def loaded(world: World, threat: str = "linf", mode: str = "full") -> LeaderboardResults:
    return load_results(world.store, find_leaderboard(world.store, threat, mode))


def measured(world: World, threat: str = "linf", mode: str = "full") -> Measures:
    results = loaded(world, threat, mode)
    return measures(results, results.defenses["d"])


def result_of(world: World, threat: str = "linf") -> DefenseResult:
    return loaded(world, threat).defenses["d"]


bits = st.lists(st.booleans(), min_size=24, max_size=24).map(np.array)


@pytest.mark.row("E02", "E21", "G01")
@given(bits, bits, bits)
@settings(max_examples=15, deadline=None)
def test_robust_accuracy_is_clean_accuracy_times_that_of_the_correct(
    empty: Path, right: Bits, one: Bits, two: Bits
) -> None:
    """Exactly, in integers: k/n = c/n * k/c, and the successes are the rest of the correct ones.

    The worst case is taken example by example, so it is at most the figure of each attack.
    """
    with small(empty, 24) as world:
        world.attack("fgsm")
        world.attack("pgd")
        enter(world, "d", right, one, two)
        result = result_of(world)
        for attacks in (None, ["fgsm"], []):
            found = robust_on_correct(result, attacks)
            robust, clean = int(result.robust(attacks).sum()), int(right.sum())
            assert (found.k, found.n) == (robust, clean)
            assert found.k * clean == robust * found.n
            assert int(result.broken_by(attacks or ()).sum()) == clean - int(
                result.robust(attacks or ()).sum()
            )
        assert (result.robust() == (right & ~one & ~two)).all()
        alone = [int(result.robust([name]).sum()) for name in ("fgsm", "pgd")]
        assert int(result.robust().sum()) <= min(alone)
        if not (one & ~two & right).any():
            assert int(result.robust().sum()) == alone[1], "equal where one attack breaks it all"


@pytest.mark.row("G04", "E25")
def test_the_fall_of_confidence_is_over_correct_examples_and_the_worst_attack(
    mixed: World,
) -> None:
    clean_pass(mixed, some(6, 5), true_confidence=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    mixed.evaluate("d", "pgd", some(6), true_confidence=[0.5, 0.9, 0.05, 0.6, np.nan, 0.0])
    mixed.evaluate("d", "fgsm", some(6), true_confidence=[0.6, 0.3, 0.6, 0.7, np.nan, 0.0])
    found = measured(mixed).confidence
    after, before = np.array([0.5, 0.3, 0.05, 0.6]), np.array([0.9, 0.8, 0.7, 0.6])
    assert found is not None and (found.n, found.of) == (4, 5)  # example 4 was not measured
    assert found.before == pytest.approx(before.mean())
    assert found.after == pytest.approx(after.mean())
    assert found.mean == pytest.approx((before - after).mean())
    assert dict(found.quantiles)[0.5] == pytest.approx(np.median(before - after))
    assert dict(found.quantiles)[0.95] == pytest.approx(np.quantile(before - after, 0.95))
    assert {level: (count.k, count.n) for level, count in found.below} == {0.5: (2, 4), 0.1: (1, 4)}


def test_confidence_never_rises_under_attack(mixed: World) -> None:
    """The clean image is in the perturbation set, so the worst image is at most as confident."""
    clean_pass(mixed, some(6), true_confidence=[0.5] * 6)
    mixed.evaluate("d", "pgd", some(6), true_confidence=[0.9] * 6)
    found = confidence_drop(result_of(mixed))
    assert isinstance(found, ConfidenceDrop) and (found.mean, found.after) == (0.0, 0.5)


@pytest.mark.row("G03", "E25")
def test_the_matrix_of_a_targeted_goal_adds_up(mixed: World) -> None:
    """Row and column sums are the counts attacked, and all pairs give the targeted rate."""
    mixed.threat("targeted", "pgd", goal="targeted", rule="all")
    clean_pass(mixed, some(6, 0))
    truth = np.repeat([0, 0, 1, 1, 2, 2], 2)
    target = (truth + np.tile([1, 2], 6)) % 3
    broken = some(12, 0, 2, 4, 5, 9)
    mixed.evaluate("d", "pgd", broken, threat="targeted", target=target, label=target)
    found = measured(mixed, "targeted").targets
    assert found is not None and found.targeted and found.reached is not None
    pairs = {(p.source, p.target): (p.reached, p.attempted) for p in found.pairs}
    assert pairs == {
        (0, 1): (1, 1), (0, 2): (0, 1), (1, 2): (1, 2), (1, 0): (1, 2), (2, 0): (0, 2),
        (2, 1): (1, 2),
    }  # fmt: skip
    assert all(p.source != p.target for p in found.pairs)
    assert sum(p.attempted for p in found.pairs) == found.reached.n == 10
    assert sum(p.reached for p in found.pairs) == found.reached.k == 4
    for source, right in ((0, 1), (1, 2), (2, 2)):
        assert sum(p.attempted for p in found.pairs if p.source == source) == 2 * right


@pytest.mark.row("G02", "E25")
def test_targeted_success_is_at_most_untargeted_success(mixed: World) -> None:
    """Of the same adversarial examples: reaching one class is being wrong."""
    mixed.threat("targeted", "pgd", goal="targeted", rule="next")
    clean_pass(mixed, some(6))
    target = (np.array([0, 0, 1, 1, 2, 2]) + 1) % 3
    label = np.array([1, 2, 2, 1, 1, 0])
    wrong, reached = label != [0, 0, 1, 1, 2, 2], label == target
    mixed.evaluate("d", "pgd", wrong, label=label)
    mixed.evaluate("d", "pgd", reached, threat="targeted", label=label, target=target)
    found = measured(mixed, "targeted").targets
    free = result_of(mixed).robust().sum()
    assert found is not None and found.reached is not None
    assert (found.reached.k, found.reached.n) == (3, 6)
    assert found.reached.k <= 6 - free == 5


def test_an_untargeted_goal_shows_what_examples_were_turned_into(mixed: World) -> None:
    clean_pass(mixed, some(6, 5))
    mixed.evaluate("d", "pgd", some(6, 0, 2, 5), label=[2, 0, 0, 1, 2, 0])
    mixed.evaluate("d", "fgsm", some(6, 0, 2), label=[1, 0, 0, 1, 2, 2])
    found = measured(mixed).targets
    assert found is not None and (found.targeted, found.reached) == (False, None)
    pairs = {(p.source, p.target): (p.reached, p.attempted) for p in found.pairs}
    assert pairs == {(0, 1): (1, 2), (0, 2): (1, 2), (1, 0): (1, 2)}


@pytest.mark.row("E24")
def test_top_k_errors_count_the_rank_of_the_true_class(store: Store) -> None:
    world = World(store, n=6, classes=10)
    world.threat("linf", "pgd")
    world.attack("pgd")
    world.defense("d")
    clean_pass(world, some(6, 5), true_rank=[0, 0, 0, 0, 0, 4])
    world.evaluate("d", "pgd", some(6, 1, 2, 3, 5), true_rank=[-1, 4, 5, 9, 0, 10])
    found = {one.k: (one.clean.k, one.robust.k, one.robust.n) for one in measured(world).top_k}
    assert found == {1: (1, 4, 6), 5: (0, 3, 6)}


def test_the_k_th_place_below_the_first_is_an_error_on_clean_images_too(store: Store) -> None:
    """Right: rank k, counted from 0, is outside the first k; clean and attacked alike."""
    world = World(store, n=6, classes=10)
    world.threat("linf", "pgd")
    world.attack("pgd")
    world.defense("d")
    clean_pass(world, some(6, 1, 2, 3), true_rank=[0, 1, 4, 5, 0, 0])
    world.evaluate("d", "pgd", some(6, 4), true_rank=[0, 1, 4, 5, 1, -1])
    found = {one.k: (one.clean.k, one.robust.k, one.clean.n) for one in measured(world).top_k}
    assert found == {1: (3, 4, 6), 5: (1, 1, 6)}


def test_with_few_classes_there_is_no_top_5_error(mixed: World) -> None:
    clean_pass(mixed, some(6))
    mixed.evaluate("d", "pgd", some(6, 2))
    assert [(one.k, one.clean.k, one.robust.k) for one in measured(mixed).top_k] == [(1, 0, 1)]


def test_among_five_classes_every_answer_is_among_the_first_five(store: Store) -> None:
    world = World(store, n=6, classes=5)
    world.threat("linf", "pgd")
    world.attack("pgd")
    world.defense("d")
    clean_pass(world, some(6))
    world.evaluate("d", "pgd", some(6, 1))
    assert [one.k for one in measured(world).top_k] == [1]


@pytest.mark.row("E23")
@given(st.lists(st.floats(0, 50, width=32), min_size=6, max_size=6),
       st.lists(st.floats(0, 50, width=32), min_size=6, max_size=6))  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_adversarial_risk_is_at_least_the_risk(
    empty: Path, clean: list[float], attacked: list[float]
) -> None:
    with small(empty, 6) as world:
        world.attack("pgd")
        world.defense("d")
        clean_pass(world, some(6), loss=clean)
        world.evaluate("d", "pgd", some(6), loss=attacked)
        found = measured(world).risk
        assert found is not None and found.adversarial >= found.clean
        assert found.clean == pytest.approx(np.mean(clean))
        assert found.adversarial == pytest.approx(np.maximum(clean, attacked).mean())


def test_losses_that_are_not_known_leave_the_risk(mixed: World) -> None:
    clean_pass(mixed, some(6), loss=[1, 2, 3, 4, 5, np.nan])
    mixed.evaluate("d", "pgd", some(6), loss=[2, np.nan, 9, 4, 4, 8])
    found = measured(mixed).risk
    assert found is not None and (found.n, found.clean, found.adversarial) == (5, 3.0, 22 / 5)


@pytest.mark.row("X21")
def test_the_first_order_gap_is_pgd_less_all_gradient_attacks(world: World) -> None:
    """Transfer and score-based attacks take no part; PGD with the most restarts does."""
    world.attack("pgd", parameters={"restarts": 1})
    world.attack("pgd-restarts", parameters={"restarts": 20})
    world.attack("square", needs="scores")
    world.attack("transfer", source="surrogate")
    enter(world, "d", ALL, first(90), first(60))
    world.evaluate("d", "pgd-restarts", some(600, *range(70)))
    world.evaluate("d", "square", first(300))
    world.evaluate("d", "transfer", first(400))
    found = measured(world).first_order_gap
    assert found is not None
    assert (found.attack, found.pgd.k, found.all_gradient.k) == ("pgd-restarts", 530, 510)
    assert found.gap == pytest.approx(20 / 600)


def test_without_pgd_there_is_no_first_order_gap(world: World) -> None:
    enter(world, "d", ALL, first(90))
    assert measured(world).first_order_gap is None


def test_a_cascade_has_no_first_order_gap(world: World) -> None:
    """PGD runs only on what the attacks before it left, so its own figure is not known."""
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "pgd", first(60), mode="rank")
    assert measured(world, mode="rank").first_order_gap is None


def test_pgd_without_a_number_of_restarts_has_one(world: World) -> None:
    world.attack("pgd", parameters={"restarts": 2})
    world.attack("pgd-restarts")
    enter(world, "d", ALL, NONE, first(60))
    world.evaluate("d", "pgd-restarts", first(70))
    found = measured(world).first_order_gap
    assert found is not None and found.attack == "pgd"


def test_one_example_has_whole_shares_and_costs(store: Store) -> None:
    world = World(store, n=1)
    world.threat("linf", "pgd")
    for attack in ("pgd", "fgsm"):
        world.attack(attack)
    enter(world, "d", first(1, 1), first(1, 1), first(0, 1))
    found = measured(world)
    assert found.first_order_gap is not None and found.first_order_gap.gap == 1.0
    assert [(one.attack, one.seconds, one.queries) for one in found.costs] == [
        ("fgsm", 0.5, 3.0), ("pgd", 0.5, 3.0),
    ]  # fmt: skip


@given(bits, bits, bits)
@settings(max_examples=15, deadline=None)
def test_the_first_order_gap_is_never_negative(
    empty: Path, right: Bits, one: Bits, two: Bits
) -> None:
    with small(empty, 24) as world:
        world.attack("fgsm")
        world.attack("pgd")
        enter(world, "d", right, one, two)
        found = measured(world).first_order_gap
        assert found is not None
        assert found.gap == (right & one & ~two).sum() / 24


@pytest.mark.row("E11")
def test_costs_are_per_example_and_the_dearest_attack_is_first(world: World) -> None:
    enter(world, "d", ALL, NONE, NONE)
    for seed in (1, 2):
        made = outcomes(NONE, forwards=np.full(600, 9))
        halves = (range(300), range(300, 600))  # half a second each
        world.record(world.cell("d", "pgd", seed=seed), made, chunks=halves)
    pgd, fgsm = measured(world).costs
    assert (fgsm.attack, fgsm.queries, fgsm.gradients) == ("fgsm", 3.0, 2.0)
    assert (pgd.attack, pgd.queries, pgd.gradients) == ("pgd", (3 + 9 + 9) / 3, 2.0)
    assert fgsm.seconds == pytest.approx(0.5 / 600)
    assert pgd.seconds == pytest.approx((0.5 + 1 + 1) / 1800)


@pytest.mark.row("E01")
def test_the_distortion_curve_begins_with_clean_accuracy(world: World) -> None:
    for name, eps in (("small", 0.1), ("large", 0.3)):
        world.threat(name, "pgd", eps=eps)
    enter(world, "d", first(590), NONE, first(100))
    world.evaluate("d", "pgd", first(30), threat="small")
    world.evaluate("d", "pgd", first(400), threat="large")
    known = leaderboards(world.store)
    everywhere = [load_results(world.store, one) for one in known]
    points = distortion_curve("d", everywhere)
    assert [(p.radius, p.robust.k, p.leaderboard) for p in points] == [
        (0.0, 590, ""), (0.1, 560, "small"), (0.2, 490, "linf"), (0.3, 190, "large"),
    ]  # fmt: skip
    assert distortion_curve("unknown", everywhere) == ()


def test_one_radius_has_a_curve_of_two_points(world: World) -> None:
    enter(world, "d", first(590), NONE, first(100))
    points = distortion_curve("d", [loaded(world)])
    assert [(p.radius, p.robust.k) for p in points] == [(0.0, 590), (0.2, 490)]


def test_outcomes_of_older_versions_have_no_measures(mixed: World) -> None:
    """Where nothing was recorded there is no figure; what the verdicts give stays."""
    blank = {"true_confidence": [np.nan] * 6, "true_rank": [-1] * 6, "loss": [np.nan] * 6}
    clean_pass(mixed, some(6), **blank)
    mixed.evaluate("d", "pgd", some(6, 2), claimed=[-1] * 6, **blank)
    found = measured(mixed)
    assert (found.confidence, found.top_k, found.risk) == (None, (), None)
    assert found.first_order_gap is not None and found.targets is not None
    result = result_of(mixed)
    assert result.attacks["pgd"].refusals.not_adversarial is None


def test_without_a_clean_pass_only_costs_are_known(world: World) -> None:
    world.defense("d")
    world.evaluate("d", "pgd", first(5))
    found = measured(world)
    assert (found.confidence, found.targets, found.top_k, found.risk) == (None, None, (), None)
    assert found.first_order_gap is None and len(found.costs) == 1

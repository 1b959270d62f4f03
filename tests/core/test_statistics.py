"""Intervals and tests against scipy, ranks against their definition."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from bench.core import statistics

COUNTS = [
    (0, 1), (1, 1), (0, 7), (7, 7), (1, 7), (3, 10), (350, 500), (0, 500), (500, 500),
    (499, 500), (1, 1000), (7013, 10_000), (0, 10_000), (9_999, 10_000),
]  # fmt: skip


@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    theirs = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert statistics.wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_clopper_pearson_agrees_with_scipy(k: int, n: int, level: float) -> None:
    theirs = binomtest(k, n).proportion_ci(level, method="exact")
    assert statistics.clopper_pearson(k, n, level) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-9
    )


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_scipy_and_is_symmetric(a: int, b: int) -> None:
    theirs = binomtest(a, a + b).pvalue if a + b else 1.0
    assert statistics.mcnemar(a, b) == pytest.approx(theirs, abs=1e-9)
    assert statistics.mcnemar(a, b) == statistics.mcnemar(b, a)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_a_paired_difference_excludes_zero_where_the_test_rejects(
    a: int, b: int, more: int
) -> None:
    n = a + b + more
    found = statistics.paired_difference(a, b, n)
    mirrored = statistics.paired_difference(b, a, n)
    assert mirrored == pytest.approx((-found.difference, -found.high, -found.low), abs=1e-9)
    assert found.low - 1e-12 <= found.difference <= found.high + 1e-12
    assert found.difference == pytest.approx((a - b) / n if n else 0)
    assert (found.low > 0 or found.high < 0) == (statistics.mcnemar(a, b) < 0.05)


def test_a_paired_difference_of_more_examples_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="a count is 7 of 6"):
        statistics.paired_difference(4, 3, 6)


def test_mcnemar_of_many_examples_neither_overflows_nor_takes_long() -> None:
    assert statistics.mcnemar(0, 10_000) == 0.0
    assert statistics.mcnemar(5_100, 4_900) == pytest.approx(
        binomtest(4_900, 10_000).pvalue, abs=1e-9
    )


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_an_interval_contains_its_share_and_stays_in_the_unit(k: int, more: int) -> None:
    n = k + more
    low, high = statistics.wilson(k, n)
    assert 0 <= low <= (k / n if n else 0.5) <= high <= 1
    assert (low == 0) == (k == 0)
    assert (high == 1) == (k == n)


def test_zero_of_a_thousand_has_a_positive_upper_bound() -> None:
    assert statistics.count_interval(0, 1000).high == pytest.approx(0.0038, abs=5e-5)


def test_a_count_outside_its_total_is_refused() -> None:
    with pytest.raises(ValueError, match="8 of 7"):
        statistics.count_interval(8, 7)
    with pytest.raises(ValueError, match="-1 of 7"):
        statistics.clopper_pearson(-1, 7)
    with pytest.raises(ValueError, match="-2"):
        statistics.mcnemar(3, -2)


PVALUES = st.lists(st.floats(0, 0.2), max_size=8)


@given(PVALUES)
def test_holm_is_the_adjusted_p_below_the_level(pvalues: list[float]) -> None:
    """Against the definition: the p-values in order, each against its share of the level."""
    order = np.argsort(pvalues, kind="stable")
    expected = [False] * len(pvalues)
    for step, position in enumerate(order):
        if pvalues[position] > 0.05 / (len(pvalues) - step):
            break
        expected[position] = True
    close = any(math.isclose(a, 0.05, rel_tol=1e-12) for a in statistics.holm_adjusted(pvalues))
    assert close or statistics.holm(pvalues) == expected


@given(PVALUES, st.integers(0, 7), st.floats(0, 1))
def test_a_smaller_p_value_never_raises_an_adjusted_one(
    pvalues: list[float], position: int, factor: float
) -> None:
    smaller = list(pvalues)
    if position < len(smaller):
        smaller[position] *= factor
    pairs = zip(statistics.holm_adjusted(smaller), statistics.holm_adjusted(pvalues), strict=True)
    assert all(after <= before for after, before in pairs)


@given(PVALUES)
def test_adjusted_p_values_keep_the_order_and_are_never_smaller(pvalues: list[float]) -> None:
    adjusted = statistics.holm_adjusted(pvalues)
    for p, q in zip(pvalues, adjusted, strict=True):
        assert p <= q <= min(1.0, len(pvalues) * p + 1e-15)
        assert all(q <= other for o, other in zip(pvalues, adjusted, strict=True) if p <= o)


@given(PVALUES)
def test_holm_rejects_no_more_than_untested_and_no_less_than_bonferroni(ps: list[float]) -> None:
    for p, rejected in zip(ps, statistics.holm(ps), strict=True):
        assert not rejected or p <= 0.05
        assert rejected or p > 0.05 / len(ps)


def robust(k: int, n: int = 600) -> npt.NDArray[np.bool_]:
    return np.arange(n) < k


def test_clear_differences_give_single_ranks() -> None:
    ranks = statistics.rank_ranges({"low": robust(100), "high": robust(500), "middle": robust(300)})
    assert ranks == {"high": (1, 1, 1, ()), "middle": (2, 2, 2, ()), "low": (3, 3, 3, ())}
    assert list(ranks) == ["high", "middle", "low"]


def test_five_paired_wins_are_a_tie_and_six_are_a_rank() -> None:
    tie = statistics.rank_ranges({"a": robust(305), "b": robust(300)})
    assert tie == {"a": (1, 2, 1, ("b",)), "b": (1, 2, 1, ("a",))}
    apart = statistics.rank_ranges({"a": robust(306), "b": robust(300)})
    assert apart == {"a": (1, 1, 1, ()), "b": (2, 2, 2, ())}


def test_holm_widens_the_range_when_there_are_more_comparisons() -> None:
    defenses = {"a": robust(306), "b": robust(300), "c": robust(300), "d": robust(300)}
    assert statistics.rank_ranges(defenses)["a"] == (1, 4, 1, ("b", "c", "d"))


def test_the_test_is_paired_not_a_comparison_of_shares() -> None:
    n = np.arange(600)
    crossed = {"a": (n % 2) == 0, "b": (n % 2 == 1) & (n > 11)}
    assert statistics.rank_ranges(crossed)["a"] == (1, 2, 1, ("b",))
    nested = {"a": (n % 2) == 0, "b": (n % 2 == 0) & (n > 11)}
    assert statistics.rank_ranges(nested)["a"] == (1, 1, 1, ())


def test_defenses_with_different_examples_are_never_compared() -> None:
    with pytest.raises(ValueError, match="599, 600 examples"):
        statistics.rank_ranges({"a": robust(1, 600), "b": robust(1, 599)})


@st.composite
def defenses(draw: st.DrawFn) -> dict[str, npt.NDArray[np.bool_]]:
    names = draw(st.lists(st.sampled_from("abcdefg"), unique=True, max_size=6))
    columns = [draw(st.lists(st.booleans(), min_size=24, max_size=24)) for _ in names]
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


Robust = dict[str, npt.NDArray[np.bool_]]


@given(defenses())
@settings(deadline=None)
def test_the_family_agrees_with_scipy(robust: Robust) -> None:
    """Every p-value by scipy's binomial test, then Holm written out over all pairs."""
    tests = statistics.paired_tests(robust)
    assert len(tests) == math.comb(len(robust), 2)
    left, largest = len(tests), 0.0
    for test in sorted(tests, key=lambda test: test.p):
        a, b = robust[test.a], robust[test.b]
        only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
        assert (test.only_a, test.only_b) == (only_a, only_b)
        theirs = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert test.p == pytest.approx(theirs, abs=1e-12)
        largest = max(largest, left * theirs)
        assert test.adjusted == pytest.approx(min(1.0, largest), abs=1e-12)
        assert test.differ == (test.adjusted <= 0.05)
        left -= 1


@given(defenses())
@settings(deadline=None)
def test_ties_are_symmetric_and_both_rows_state_them(robust: Robust) -> None:
    ranks = statistics.rank_ranges(robust)
    for name, rank in ranks.items():
        assert name not in rank.tied
        assert all(name in ranks[other].tied for other in rank.tied)
        assert list(rank.tied) == [other for other in ranks if other in rank.tied]


@given(defenses())
@settings(deadline=None)
def test_better_is_antisymmetric_and_gives_the_ranges(robust: Robust) -> None:
    tests, ranks = statistics.paired_tests(robust), statistics.rank_ranges(robust)
    told_apart = [test for test in tests if test.differ]
    better = {(t.a, t.b) if t.better == t.a else (t.b, t.a) for t in told_apart}
    assert all(t.better in (t.a, t.b) if t.differ else t.better is None for t in tests)
    assert all((b, a) not in better for a, b in better)
    for a, b in better:
        assert robust[a].sum() > robust[b].sum()
        assert b not in ranks[a].tied and a not in ranks[b].tied
    for name, rank in ranks.items():
        assert rank.best == 1 + sum(b == name for _, b in better)
        assert rank.worst == len(ranks) - sum(a == name for a, _ in better)
        assert len(rank.tied) == rank.worst - rank.best


@given(defenses(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_ranks_do_not_depend_on_the_order_of_the_examples(robust: Robust, dice: Random) -> None:
    order = list(range(24))
    dice.shuffle(order)
    again = statistics.rank_ranges({name: bits[order] for name, bits in robust.items()})
    assert again == statistics.rank_ranges(robust)


@pytest.mark.parametrize("others", [4, 5, 9])
def test_one_row_never_states_a_difference_where_the_other_states_a_tie(others: int) -> None:
    """Corrected for each row alone, p = .0156 told `low` from `middle` and not the reverse."""
    counts = {"low": 289, "middle": 296} | {f"high {i}": 300 for i in range(others)}
    robust_by_name = {name: robust(k) for name, k in counts.items()}
    pvalue = {test.a: test.p for test in statistics.paired_tests(robust_by_name)
              if {test.a, test.b} == {"low", "middle"}}["low"]  # fmt: skip
    assert pvalue == 0.015625
    of_low = [pvalue, *[statistics.mcnemar(11, 0)] * others]
    of_middle = [pvalue, *[statistics.mcnemar(4, 0)] * others]
    assert (statistics.holm(of_low)[0], statistics.holm(of_middle)[0]) == (True, False)
    ranks = statistics.rank_ranges(robust_by_name)
    assert "middle" in ranks["low"].tied and "low" in ranks["middle"].tied


@given(defenses())
@settings(deadline=None)
def test_ranks_do_not_depend_on_order_or_names(
    robust: dict[str, npt.NDArray[np.bool_]],
) -> None:
    ranks = statistics.rank_ranges(robust)
    other = {name: chr(ord("z") - ord(name) + ord("a")) for name in robust}
    again = statistics.rank_ranges({other[name]: robust[name] for name in reversed(robust)})
    for name, rank in ranks.items():
        assert again[other[name]][:3] == rank[:3]
        assert set(again[other[name]].tied) == {other[tied] for tied in rank.tied}


@given(defenses())
@settings(deadline=None)
def test_ranges_are_ranks_and_groups_follow_their_order(
    robust: dict[str, npt.NDArray[np.bool_]],
) -> None:
    ranks = list(statistics.rank_ranges(robust).values())
    for place, rank in enumerate(ranks, start=1):
        assert 1 <= rank.best <= place <= rank.worst <= len(ranks)
    groups = [rank.group for rank in ranks]
    assert groups == sorted(groups)
    assert set(groups) == set(range(1, len(set(groups)) + 1))


def test_a_p_value_at_the_level_is_rejected() -> None:
    assert statistics.holm([0.05]) == [True]
    assert statistics.holm([0.03, 0.0625, 0.06], level=0.0625) == [False, False, False]
    assert statistics.holm([0.03125, 0.0625], level=0.0625) == [True, True]
    (test,) = statistics.paired_tests({"a": robust(305), "b": robust(300)}, level=0.0625)
    assert (test.p, test.adjusted, test.differ) == (0.0625, 0.0625, True)


def test_a_defense_below_stands_after_a_weaker_one() -> None:
    ranks = statistics.rank_ranges(
        {"masked": robust(500), "weak": robust(100), "weaker": robust(90)}, {"masked"}
    )
    assert ranks == {"weak": (1, 1, 1, ()), "weaker": (2, 2, 2, ()), "masked": (3, 3, 3, ())}


@given(defenses(), st.sets(st.sampled_from("abcdefg")))
@settings(deadline=None)
def test_defenses_below_never_rank_or_tie_with_the_others(robust: Robust, below: set[str]) -> None:
    ranks = statistics.rank_ranges(robust, below)
    lower = [name in below for name in ranks]
    assert lower == sorted(lower)
    others = lower.count(False)
    for name, rank in ranks.items():
        assert rank.best > others if name in below else rank.worst <= others
        assert all((other in below) == (name in below) for other in rank.tied)
        assert all(name in ranks[other].tied for other in rank.tied)
        assert len(rank.tied) == rank.worst - rank.best

"""Intervals and tests against scipy, ranks against their definition."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
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
    order = np.argsort(pvalues, kind="stable")
    adjusted, running = {}, 0.0
    for step, position in enumerate(order):
        running = max(running, (len(pvalues) - step) * pvalues[position])
        adjusted[int(position)] = running
    expected = [adjusted[i] <= 0.05 for i in range(len(pvalues))]
    close = any(math.isclose(value, 0.05, rel_tol=1e-12) for value in adjusted.values())
    assert close or statistics.holm(pvalues) == expected


@given(PVALUES)
def test_holm_rejects_no_more_than_untested_and_no_less_than_bonferroni(ps: list[float]) -> None:
    for p, rejected in zip(ps, statistics.holm(ps), strict=True):
        assert not rejected or p <= 0.05
        assert rejected or p > 0.05 / len(ps)


def robust(k: int, n: int = 600) -> npt.NDArray[np.bool_]:
    return np.arange(n) < k


def test_clear_differences_give_single_ranks() -> None:
    ranks = statistics.rank_ranges({"low": robust(100), "high": robust(500), "middle": robust(300)})
    assert ranks == {"high": (1, 1, 1), "middle": (2, 2, 2), "low": (3, 3, 3)}
    assert list(ranks) == ["high", "middle", "low"]


def test_five_paired_wins_are_a_tie_and_six_are_a_rank() -> None:
    tie = statistics.rank_ranges({"a": robust(305), "b": robust(300)})
    assert tie == {"a": (1, 2, 1), "b": (1, 2, 1)}
    apart = statistics.rank_ranges({"a": robust(306), "b": robust(300)})
    assert apart == {"a": (1, 1, 1), "b": (2, 2, 2)}


def test_holm_widens_the_range_when_there_are_more_comparisons() -> None:
    defenses = {"a": robust(306), "b": robust(300), "c": robust(300), "d": robust(300)}
    assert statistics.rank_ranges(defenses)["a"] == (1, 4, 1)


def test_the_test_is_paired_not_a_comparison_of_shares() -> None:
    n = np.arange(600)
    crossed = {"a": (n % 2) == 0, "b": (n % 2 == 1) & (n > 11)}
    assert statistics.rank_ranges(crossed)["a"] == (1, 2, 1)
    nested = {"a": (n % 2) == 0, "b": (n % 2 == 0) & (n > 11)}
    assert statistics.rank_ranges(nested)["a"] == (1, 1, 1)


def test_defenses_with_different_examples_are_never_compared() -> None:
    with pytest.raises(ValueError, match="599, 600 examples"):
        statistics.rank_ranges({"a": robust(1, 600), "b": robust(1, 599)})


@st.composite
def defenses(draw: st.DrawFn) -> dict[str, npt.NDArray[np.bool_]]:
    names = draw(st.lists(st.sampled_from("abcdefg"), unique=True, max_size=6))
    columns = [draw(st.lists(st.booleans(), min_size=24, max_size=24)) for _ in names]
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


@given(defenses())
def test_ranks_do_not_depend_on_order_or_names(
    robust: dict[str, npt.NDArray[np.bool_]],
) -> None:
    ranks = statistics.rank_ranges(robust)
    renamed = {chr(ord("z") - ord(name) + ord("a")): robust[name] for name in reversed(robust)}
    again = statistics.rank_ranges(renamed)
    for name, rank in ranks.items():
        assert again[chr(ord("z") - ord(name) + ord("a"))] == rank


@given(defenses())
def test_ranges_are_ranks_and_groups_follow_their_order(
    robust: dict[str, npt.NDArray[np.bool_]],
) -> None:
    ranks = list(statistics.rank_ranges(robust).values())
    for place, rank in enumerate(ranks, start=1):
        assert 1 <= rank.best <= place <= rank.worst <= len(ranks)
    groups = [rank.group for rank in ranks]
    assert groups == sorted(groups)
    assert set(groups) == set(range(1, len(set(groups)) + 1))

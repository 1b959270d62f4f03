"""Exact one-sided tests of paired counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.results.paired_attacks import (
    LEAST_PAIRS,
    P_LIMIT,
    PairedCounts,
    binomial_tail,
    count_pairs,
    tail_of_share,
)
from tests.fixtures.small_store import first


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 7), (7, 7), (3, 9), (260, 500), (5200, 10000)])
def test_the_p_value_is_the_binomial_tail(k: int, n: int) -> None:
    expected = stats.binom.sf(k - 1, n, 0.5) if n else 1.0
    assert binomial_tail(k, n) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("k", "n", "share"), [(0, 5, 0.01), (5, 5, 0.9), (14, 500, 0.01)])
def test_the_tail_of_a_share_is_the_binomial_tail(k: int, n: int, share: float) -> None:
    assert tail_of_share(k, n, share) == pytest.approx(stats.binom.sf(k - 1, n, share), rel=1e-9)


def test_ten_pairs_are_the_fewest_that_can_be_significant() -> None:
    assert LEAST_PAIRS == 10
    assert binomial_tail(9, 9) >= P_LIMIT > binomial_tail(10, 10)


@pytest.mark.parametrize(
    ("only_first", "only_second", "n", "significant"),
    [
        (10, 0, 500, True),
        (9, 0, 100, False),  # p = 2^-9
        (10, 0, 501, False),  # two points are 11
        (0, 30, 500, False),
        (40, 20, 500, False),  # p = .007
        (60, 20, 500, True),
    ],
)
def test_a_difference_is_significant_by_p_value_and_size(
    only_first: int, only_second: int, n: int, significant: bool
) -> None:
    counts = PairedCounts(only_first + 5, only_second + 5, only_first, only_second, n, n)
    assert counts.is_significant is significant


def test_only_paired_right_examples_count() -> None:
    n = 20
    counts = count_pairs(~first(2, n), first(15, n), first(10, n), ~first(8, n))
    # Right and paired: 2 to 14. First: 2 to 9; second: 8 to 14.
    assert counts == PairedCounts(8, 7, 6, 5, 13, 15)
    assert counts.difference == 1
    assert np.isclose(counts.p, binomial_tail(6, 11))

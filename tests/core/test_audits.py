"""Audits by a sample: exact bounds, edge cases, and the coverage on simulated draws."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from bench.core.audits import BOUND, Audit, audit_order, audit_size, upper_bound
from bench.core.statistics import clopper_pearson


def chance_of_none(population: int, marked: int, sample: int) -> float:
    return comb(population - marked, sample) / comb(population, sample)


@pytest.mark.parametrize(("population", "sample"), [(289, 57), (40, 12), (7, 3), (1000, 59)])
def test_the_bound_is_the_largest_number_that_a_clean_sample_does_not_refute(
    population: int, sample: int
) -> None:
    most = upper_bound(population, sample)
    assert chance_of_none(population, most, sample) > 0.05
    assert chance_of_none(population, most + 1, sample) <= 0.05


def test_a_success_in_the_sample_raises_the_bound() -> None:
    bounds = [upper_bound(100, 20, fell) for fell in range(21)]
    assert bounds == sorted(set(bounds))
    assert bounds[20] == 100


@pytest.mark.parametrize("population", [0, 1, 30])
def test_a_sample_of_everything_leaves_no_doubt(population: int) -> None:
    assert upper_bound(population, population) == 0


def test_an_empty_sample_says_nothing() -> None:
    assert upper_bound(30, 0) == 30


@pytest.mark.parametrize(("population", "sample", "fell"), [(5, 6, 0), (5, 3, 4), (5, 3, -1)])
def test_impossible_counts_are_refused(population: int, sample: int, fell: int) -> None:
    with pytest.raises(ValueError, match="use 0 <= fell"):
        upper_bound(population, sample, fell)


def test_of_a_large_population_the_bound_is_that_of_the_binomial() -> None:
    """One-sided at 95 %, that is, the upper end of the interval at 90 %."""
    share = upper_bound(10**6, 57) / 10**6
    assert share == pytest.approx(clopper_pearson(0, 57, 0.9).high, abs=1e-4)


@pytest.mark.parametrize(("population", "n"), [(275, 500), (144, 300), (6000, 10_000), (20, 25)])
def test_the_audit_is_the_smallest_with_its_bound(population: int, n: int) -> None:
    m = audit_size(population, n)
    assert upper_bound(population, m) <= BOUND * n < upper_bound(population, m - 1)


def test_few_survivors_need_no_audit() -> None:
    """Where all of them together are within the bound."""
    assert audit_size(0, 500) == audit_size(15, 500) == 0
    assert audit_size(16, 500) > 0


def test_on_few_examples_every_survivor_is_audited() -> None:
    assert audit_size(10, 12) == 10


def test_the_order_of_the_audit_depends_on_each_name_alone() -> None:
    first = audit_order(50, "threat", "defense", "protocol")
    assert sorted(first.tolist()) == list(range(50))
    assert np.array_equal(first, audit_order(50, "threat", "defense", "protocol"))
    for names in (("x", "defense", "protocol"), ("threat", "defense", "x"), ("threat", "x", "p")):
        assert not np.array_equal(first, audit_order(50, *names))


@pytest.mark.parametrize("fallible", [1, 3, 9, 40])
def test_the_bound_covers_the_truth_on_simulated_audits(fallible: int) -> None:
    """Of 2,000 orders at most 5 % state a bound below the truth; four standard errors of room."""
    population, n, wrong = 150, 300, 0
    m = audit_size(population, n)
    for draw in range(2000):
        fell = int((audit_order(population, str(draw))[:m] < fallible).sum())
        wrong += fell == 0 and upper_bound(population, m) < fallible
    assert wrong / 2000 <= 0.05 + 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_the_sentence_has_every_number() -> None:
    sentence = Audit(0, 49, 289, 500).sentence
    assert sentence.startswith("0 of 49 audited survivors fell")
    assert "at most 15 more of 500, 3.0 points" in sentence
    assert Audit(0, 0, 0, 500).most == 0


def test_after_an_audit_of_all_nothing_is_left_to_break() -> None:
    audit = Audit(2, 49, 289, 500, whole=True)
    assert (audit.most, audit.passed) == (0, False)
    assert "met all survivors" in audit.sentence

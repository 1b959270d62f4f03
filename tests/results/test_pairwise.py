"""What would change a rank: the neighbouring pair and the number of examples that are missing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from bench.core.statistics import mcnemar, paired_tests, rank_ranges
from bench.results.example_results import load_results
from bench.results.leaderboards import find_leaderboard
from bench.results.pairwise import (
    EXACT_DISCORDANT,
    further_examples,
    pair_records,
    ranked_bits,
    row_separations,
    separations,
)
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, enter, ranking_of


def robust(k: int, n: int = 600) -> npt.NDArray[np.bool_]:
    return np.arange(n) < k


def test_the_nearest_tied_neighbour_is_named_with_its_counts() -> None:
    rows = {"first": robust(500), "second": robust(450), "third": robust(447)}
    found = separations(rows)
    assert (found["first"].other, found["first"].tied, found["first"].above) == (
        "second", False, False,
    )  # fmt: skip
    second, third = found["second"], found["third"]
    assert (second.other, third.other) == ("third", "second")
    assert (second.only_this, second.only_other, third.only_this, third.only_other) == (3, 0, 0, 3)
    assert second.tied and third.tied and third.above and not second.above
    # Two pairs are told apart, so the third has the whole level: six discordant examples.
    assert second.more_examples == third.more_examples == 600
    assert "Tied with third (3 examples only here, 0 only there" in second.sentence
    assert "600 more examples" in second.sentence


def test_of_two_tied_neighbours_the_one_that_needs_fewer_examples_is_named() -> None:
    rows = {"a": robust(405), "b": robust(400), "c": robust(398)}
    assert separations(rows)["b"].other == "a"
    assert separations({"a": robust(402), "b": robust(400), "c": robust(395)})["b"].other == "c"


def test_equal_rows_are_separated_by_no_number_of_examples() -> None:
    n = np.arange(600)
    for other in (n < 300, (n >= 10) & (n < 310)):
        found = separations({"a": robust(300), "b": other})
        assert [row.more_examples for row in found.values()] == [None, None]
        assert "no number of such examples" in found["a"].sentence


def test_a_single_row_has_no_neighbour() -> None:
    assert separations({"a": robust(3)}) == {}
    assert separations({}) == {}


def test_a_row_whose_neighbours_all_differ_needs_no_example() -> None:
    found = separations({"a": robust(500), "b": robust(300), "c": robust(200)})["b"]
    assert (found.other, found.more_examples, found.tied) == ("c", 0, False)
    assert found.sentence.startswith("Differs from c (100 examples only here, 0 only there")


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500))
@settings(deadline=None)
def test_the_examples_named_are_enough_by_the_exact_test(only_a: int, only_b: int, n: int) -> None:
    """With so many examples scipy's test rejects, and the one before the last discordant does not.

    The smaller count is rounded up, so the answer errs towards more examples.
    """
    total = only_a + only_b
    n = max(n, total, 1)
    more = further_examples(only_a, only_b, n, 0.01)
    if only_a == only_b:
        assert more is None
        return
    assert more is not None and more >= 0
    share = min(only_a, only_b) / total
    pvalues = {
        d: binomtest(int(np.ceil(d * share - 1e-9)), d).pvalue
        for d in range(total, EXACT_DISCORDANT + 1)
    }
    first = next((d for d, p in pvalues.items() if p <= 0.01), None)
    if first is None:
        return  # the normal approximation decides
    assert more == max(0, -(-first * n // total) - n)


@pytest.mark.parametrize(("only_a", "only_b"), [(300, 250), (250, 249), (1000, 990)])
def test_many_discordant_examples_use_the_normal_approximation(only_a: int, only_b: int) -> None:
    more = further_examples(only_a, only_b, 5000, 0.05 / 7)
    assert more is not None
    scale = (5000 + more) / 5000
    a, b = only_a * scale, only_b * scale
    statistic = (a - b - 1) / np.sqrt(a + b)
    assert norm.sf(statistic) * 2 == pytest.approx(0.05 / 7, rel=0.01)
    exact = binomtest(round(b), round(a) + round(b)).pvalue
    assert exact == pytest.approx(0.05 / 7, rel=0.15)


def test_counts_above_the_number_of_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="12 discordant examples of 11"):
        further_examples(7, 5, 11, 0.05)


def test_a_tied_pair_needs_at_least_one_more_example_and_a_better_pair_fewer() -> None:
    needed = [further_examples(k, 0, 100, 0.05 / 45) for k in range(1, 11)]
    assert all(more is not None and more > 0 for more in needed)
    assert needed == sorted(needed, key=lambda more: -(more or 0))
    assert further_examples(11, 0, 100, 0.05 / 45) == 0


@st.composite
def boards(draw: st.DrawFn) -> dict[str, npt.NDArray[np.bool_]]:
    names = draw(st.lists(st.sampled_from("abcdefg"), unique=True, min_size=2, max_size=6))
    columns = [draw(st.lists(st.booleans(), min_size=24, max_size=24)) for _ in names]
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


@given(boards())
@settings(deadline=None)
def test_the_named_pair_is_a_neighbour_and_is_tied_only_where_the_ranks_say_so(
    rows: dict[str, npt.NDArray[np.bool_]],
) -> None:
    ranks, found = rank_ranges(rows), separations(rows)
    order = list(ranks)
    assert list(found) == order
    for place, name in enumerate(order):
        one = found[name]
        assert abs(order.index(one.other) - place) == 1
        assert one.above == (order.index(one.other) < place)
        assert one.tied == (one.other in ranks[name].tied)
        assert one.more_examples is None or (one.more_examples > 0) == one.tied


@given(boards())
@settings(deadline=None)
def test_records_hold_each_pair_once_with_its_winner(
    rows: dict[str, npt.NDArray[np.bool_]],
) -> None:
    records, tests = pair_records(rows), paired_tests(rows)
    assert {(r["a"], r["b"]) for r in records} == {(t.a, t.b) for t in tests}
    assert [r["p"] for r in records] == sorted(t.p for t in tests)
    assert all((r["better"] is None) == r["tied"] for r in records)


def test_the_rows_of_a_ranking_are_compared_by_the_attacks_that_rank_them(world: World) -> None:
    """A row without a rank is left out, and an attack that is not required changes nothing."""
    for name, broken in (("strong", 100), ("peer", 103), ("weak", 400)):
        enter(world, name, ALL, NONE, first(broken))
    enter(world, "part", ALL, NONE)
    world.attack("extra")
    world.evaluate("strong", "extra", first(500))
    results = load_results(world.store, find_leaderboard(world.store, "linf"))
    rows = ranking_of(world.store)
    bits = ranked_bits(results, rows)
    assert {name: int(right.sum()) for name, right in bits.items()} == {
        "strong": 500, "peer": 497, "weak": 200,
    }  # fmt: skip
    found = row_separations(results, rows)
    assert found == separations(bits)
    assert found["strong"].other == "peer" and "part" not in found


def test_the_threshold_itself_is_enough() -> None:
    """Six discordant examples give p = 1/32 exactly; five of 600 become six with 120 more."""
    assert further_examples(5, 0, 600, 1 / 32) == 120


def test_up_to_200_discordant_examples_the_exact_test_decides() -> None:
    """The approximation says 196 for the first; both are rounded up to whole examples."""
    assert further_examples(10, 7, 17, 0.05 / 3) == 199 - 17
    assert further_examples(39, 29, 68, 0.05) == 199 - 68
    # Here the exact test first rejects at 201, which is beyond it, and the approximation at 195.
    assert further_examples(59, 44, 103, 0.05) == 195 - 103


def test_a_pair_just_above_the_threshold_needs_one_more_discordant_example() -> None:
    """The approximation puts it below the threshold already."""
    for only_a, only_b in ((108, 93), (107, 94)):
        n = only_a + only_b
        threshold = mcnemar(only_a, only_b) * (1 - 1e-9)
        assert further_examples(only_a, only_b, n, threshold) == 1
        assert further_examples(only_a, only_b, 10 * n, threshold) == 10

"""Statistics of counts: intervals, paired tests, rank ranges and ROC curves; torch-free."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal."""

_HALVINGS = 64  # an interval of length 1 is then below the resolution of a float


class Interval(NamedTuple):
    """A confidence interval of a share, as fractions."""

    low: float
    high: float


class RankRange(NamedTuple):
    """The ranks that a defense may have, given the paired tests."""

    best: int
    """1 + the number of significantly better defenses."""
    worst: int
    """The number of defenses less those that are significantly worse."""
    group: int
    """Tie group, from 1: each defense of a group may have the rank of its first one."""
    tied: tuple[str, ...] = ()
    """The defenses that differ from it neither way, best first; "tied" is symmetric."""


class PairedTest(NamedTuple):
    """The exact McNemar test of one pair, within the family of all pairs of a leaderboard."""

    a: str
    b: str
    only_a: int
    """Examples that only `a` has right."""
    only_b: int
    p: float
    adjusted: float
    """Holm-adjusted p-value, at most 1: the smallest level at which the pair is told apart."""
    differ: bool
    """Whether Holm's procedure tells the pair apart; else the two are tied."""

    @property
    def better(self) -> str | None:
        """The one of the pair with more right examples; None where they are tied."""
        if not self.differ:
            return None
        return self.a if self.only_a > self.only_b else self.b


def wilson(k: int, n: int, z: float = Z95) -> Interval:
    """The Wilson score interval of k of n (0 to 1 for n = 0). Raises ValueError unless 0 <= k <= n.

    >>> low, high = wilson(350, 500)
    >>> round(low, 3), round(high, 3)
    (0.658, 0.739)
    """
    _require_count(k, n)
    if n == 0:
        return Interval(0.0, 1.0)
    share, square = k / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    low, high = centre - half, centre + half
    return Interval(0.0 if k == 0 else low, 1.0 if k == n else high)


def count_interval(k: int, n: int) -> Count:
    """k of n with its 95 % Wilson interval."""
    return Count(k, n, *wilson(k, n))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact (Clopper-Pearson) interval of k of n. Raises ValueError unless 0 <= k <= n."""
    _require_count(k, n)
    tail = (1 - level) / 2
    at_least = _upper_tail(k, n)
    more_than = _upper_tail(k + 1, n)
    return Interval(
        low=0.0 if k == 0 else _crossing(at_least, tail),
        high=1.0 if k == n else _crossing(more_than, 1 - tail),
    )


def _require_count(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"a count is {k} of {n}; it must satisfy 0 <= k <= n.")


def _upper_tail(k: int, n: int) -> Callable[[float], float]:
    """The function p -> P(X >= k) for X binomial(n, p), which rises with p."""
    hits = np.arange(k, n + 1)
    ways = np.array(
        [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in hits.tolist()]
    )

    def tail(p: float) -> float:
        logs = ways + hits * math.log(p) + (n - hits) * math.log1p(-p)
        return float(np.exp(logs).sum())

    return tail


def _crossing(rising: Callable[[float], float], value: float) -> float:
    """The point where a function that rises on (0, 1) has the value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2


class RocCurve(NamedTuple):
    """A ROC curve: shares of negatives and positives above a falling threshold."""

    negative: npt.NDArray[np.float64]
    """[m]: share of the negatives at or above each threshold, rising from 0 to 1."""
    positive: npt.NDArray[np.float64]
    """[m]: share of the positives at or above each threshold."""

    @property
    def area(self) -> float:
        """Area under the curve, P(positive > negative) + P(equal) / 2 (Mann-Whitney)."""
        height = (self.positive[1:] + self.positive[:-1]) / 2
        return float((np.diff(self.negative) * height).sum())


def roc(negative: npt.NDArray[np.float64], positive: npt.NDArray[np.float64]) -> RocCurve:
    """The ROC curve of negative scores [m] and positive scores [n].

    One point per distinct score, highest first, after (0, 0). Raises ValueError where m or n is 0.

    >>> roc(np.array([0.0, 1.0]), np.array([1.0, 2.0])).area
    0.875
    """
    m, n = len(negative), len(positive)
    if not m or not n:
        raise ValueError(f"{m} negative and {n} positive scores came; both are needed.")
    falling = np.unique(np.concatenate([negative, positive]))[::-1]
    return RocCurve(_share_above(negative, falling), _share_above(positive, falling))


def _share_above(
    scores: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Share of the scores [n] at or above each threshold [m], after a 0."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return np.concatenate([[0.0], 1 - below / len(scores)])


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided McNemar p-value, from the numbers of examples that only one has right.

    Raises ValueError where a count is negative.

    >>> mcnemar(6, 0)
    0.03125
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts came as {only_a} and {only_b}; they must not be negative.")
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = total = math.comb(n, fewer) / (1 << n)
    for i in range(fewer, 0, -1):
        term *= i / (n - i + 1)
        if total + term == total:
            break
        total += term
    return min(1.0, 2 * total)


class PairedDifference(NamedTuple):
    """The difference of two shares on the same examples, with an interval."""

    difference: float
    """The share of the first less that of the second."""
    low: float
    high: float


def paired_difference(only_a: int, only_b: int, n: int, level: float = 0.95) -> PairedDifference:
    """The difference of two shares of the same n examples, of which these are discordant.

    The interval is that of Clopper and Pearson for the share of `a` among the discordant examples,
    given their number; it excludes 0 exactly where the exact McNemar test rejects at 1 - level.
    Raises ValueError where the counts are negative or exceed n.

    >>> [round(value, 3) for value in paired_difference(10, 0, 100)]
    [0.1, 0.038, 0.1]
    """
    discordant = only_a + only_b
    _require_count(discordant, n)
    if discordant == 0:
        return PairedDifference(0.0, 0.0, 0.0)
    low, high = clopper_pearson(only_a, discordant, level)
    scale = discordant / n
    return PairedDifference((only_a - only_b) / n, (2 * low - 1) * scale, (2 * high - 1) * scale)


def holm(pvalues: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected by Holm's step-down procedure, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    return [adjusted <= level for adjusted in holm_adjusted(pvalues)]


def holm_adjusted(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: rejected at a level are those not above it.

    >>> holm_adjusted([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest, left = [0.0] * len(pvalues), 0.0, len(pvalues)
    for position in sorted(range(len(pvalues)), key=pvalues.__getitem__):
        largest = max(largest, left * pvalues[position])
        adjusted[position] = min(1.0, largest)
        left -= 1
    return adjusted


def paired_tests(
    robust: Mapping[str, npt.NDArray[np.bool_]], level: float = 0.05
) -> list[PairedTest]:
    """The tests of all pairs of defenses as one Holm-corrected family, in the order of the names.

    `robust[name]` is [n] bool over the same examples. Raises ValueError where the arrays differ in
    length, since defenses evaluated on different examples are not compared.
    """
    _same_examples(robust)
    pairs = list(combinations(robust, 2))
    counts = [_discordant(robust[a], robust[b]) for a, b in pairs]
    pvalues = [mcnemar(*count) for count in counts]
    return [
        PairedTest(*pair, *count, p, adjusted, adjusted <= level)
        for pair, count, p, adjusted in zip(
            pairs, counts, pvalues, holm_adjusted(pvalues), strict=True
        )
    ]


def rank_ranges(
    robust: Mapping[str, npt.NDArray[np.bool_]],
    below: Collection[str] = (),
    apart: Collection[frozenset[str]] = (),
) -> dict[str, RankRange]:
    """The rank range of each defense, from paired tests on the shared examples; best first.

    `robust[name]` is [n] bool over the same examples. The tests of all pairs are one family
    (`paired_tests`), so that two defenses are tied in both rows or in neither. The defenses `below`
    stand below all others, whatever the tests say. The pairs `apart`, whose figures are of
    different versions of an attack, are compared but never called tied. Raises ValueError where the
    arrays differ in length.
    """
    tests = paired_tests(robust)
    decided = [_decided(test, below) for test in tests]
    better = Counter(pair[0] for pair in decided if pair)
    worse = Counter(pair[1] for pair in decided if pair)
    ranges = {name: (1 + worse[name], len(robust) - better[name]) for name in robust}
    right = {name: int(np.count_nonzero(bits)) for name, bits in robust.items()}
    order = sorted(robust, key=lambda name: (name in below, -right[name], ranges[name], name))
    open_tests = [t for t, pair in zip(tests, decided, strict=True) if pair is None]
    tied = _ties([t for t in open_tests if frozenset((t.a, t.b)) not in apart], order)
    ranks = _grouped({name: ranges[name] for name in order})
    return {name: rank._replace(tied=tied[name]) for name, rank in ranks.items()}


def _decided(test: PairedTest, below: Collection[str]) -> tuple[str, str] | None:
    """The better and the worse of a pair; None where they are tied."""
    if (test.a in below) != (test.b in below):
        return (test.b, test.a) if test.a in below else (test.a, test.b)
    if not test.differ:
        return None
    return (test.a, test.b) if test.better == test.a else (test.b, test.a)


def _ties(tied_pairs: Iterable[PairedTest], order: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The names that each name is tied with, in the given order."""
    tied = {frozenset((test.a, test.b)) for test in tied_pairs}
    return {name: tuple(o for o in order if frozenset((name, o)) in tied) for name in order}


def _grouped(ranges: Mapping[str, tuple[int, int]]) -> dict[str, RankRange]:
    """Rank ranges, given best first, with the number of their group of overlapping ranges."""
    ranks: dict[str, RankRange] = {}
    group, first = 0, 0
    for position, (name, (best, worst)) in enumerate(ranges.items(), start=1):
        if group == 0 or best > first:
            group, first = group + 1, position
        ranks[name] = RankRange(best, worst, group)
    return ranks


def _same_examples(robust: Mapping[str, npt.NDArray[np.bool_]]) -> None:
    lengths = {len(bits) for bits in robust.values()}
    if len(lengths) > 1:
        raise ValueError(
            f"defenses came with {', '.join(map(str, sorted(lengths)))} examples; "
            "only defenses evaluated on the same examples can be compared."
        )


def _discordant(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The numbers of examples [n] that only a, and only b, has right."""
    return int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))


@dataclass(frozen=True)
class Count:
    """k of n, with its 95 % Wilson interval as fractions."""

    k: int
    n: int
    low: float
    high: float

"""How sure a figure is: intervals, paired tests, ranks that are ranges; no torch, no scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal."""

_HALVINGS = 64  # an interval of length 1 is then below the resolution of a float


class Interval(NamedTuple):
    """Where a share may lie, as fractions."""

    low: float
    high: float


class RankRange(NamedTuple):
    """The places that an entry may hold, as far as the examples can tell."""

    best: int
    """1 + how many entries are significantly better."""
    worst: int
    """How many entries there are, less those that are significantly worse."""
    group: int
    """Entries of one group are tied: each may hold the place of the group's first. From 1."""


def wilson(k: int, n: int, z: float = Z95) -> Interval:
    """The score interval of k of n; of nothing at all, 0 to 1.

    >>> low, high = wilson(350, 500)
    >>> round(low, 3), round(high, 3)
    (0.658, 0.739)
    """
    _of(k, n)
    if n == 0:
        return Interval(0.0, 1.0)
    share, square = k / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return Interval(
        low=0.0 if k == 0 else centre - half,
        high=1.0 if k == n else centre + half,
    )


def count_interval(k: int, n: int) -> Count:
    """k of n with its 95 % Wilson interval."""
    return Count(k, n, *wilson(k, n))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval: each tail of the binomial keeps (1 - level) / 2."""
    _of(k, n)
    tail = (1 - level) / 2
    at_least = _upper_tail(k, n)
    more_than = _upper_tail(k + 1, n)
    return Interval(
        low=0.0 if k == 0 else _crossing(at_least, tail),
        high=1.0 if k == n else _crossing(more_than, 1 - tail),
    )


def _of(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"a count came as {k} of {n}; it must satisfy 0 <= k <= n.")


def _upper_tail(k: int, n: int) -> Callable[[float], float]:
    """p -> P(X >= k) for X binomial(n, p); rises with p."""
    hits = np.arange(k, n + 1)
    ways = np.array(
        [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in hits.tolist()]
    )

    def tail(p: float) -> float:
        logs = ways + hits * math.log(p) + (n - hits) * math.log1p(-p)
        return float(np.exp(logs).sum())

    return tail


def _crossing(rising: Callable[[float], float], value: float) -> float:
    """Where a function that rises on (0, 1) takes the value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2


class RocCurve(NamedTuple):
    """How many of two kinds score above a falling threshold: the ROC."""

    negative: npt.NDArray[np.float64]
    """Share of the negatives at or above each threshold, rising from 0 to 1."""
    positive: npt.NDArray[np.float64]
    """Share of the positives there."""

    @property
    def area(self) -> float:
        """P(positive > negative) + P(equal) / 2, the Mann-Whitney statistic."""
        height = (self.positive[1:] + self.positive[:-1]) / 2
        return float((np.diff(self.negative) * height).sum())


def roc(negative: npt.NDArray[np.float64], positive: npt.NDArray[np.float64]) -> RocCurve:
    """The ROC curve of negative scores [m] and positive scores [n].

    One point for each distinct score, the highest first, after (0, 0). Raises ValueError where
    there are no negative or no positive scores.

    >>> roc(np.array([0.0, 1.0]), np.array([1.0, 2.0])).area
    0.875
    """
    if not len(negative) or not len(positive):
        raise ValueError(
            f"{len(negative)} negative and {len(positive)} positive scores came; both are needed."
        )
    falling = np.unique(np.concatenate([negative, positive]))[::-1]

    def above(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        below = np.searchsorted(np.sort(scores), falling, side="left")
        return np.concatenate([[0.0], 1 - below / len(scores)])

    return RocCurve(above(negative), above(positive))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p of a paired comparison, from the examples that only one got right.

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


def holm(pvalues: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses fall when all are tested together (step-down), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    order = sorted(range(len(pvalues)), key=pvalues.__getitem__)
    rejected = [False] * len(pvalues)
    for step, position in enumerate(order):
        if pvalues[position] > level / (len(pvalues) - step):
            break
        rejected[position] = True
    return rejected


def rank_ranges(robust: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, RankRange]:
    """Each entry's range of places, from paired tests on the shared examples.

    `robust[name]` is [n] bool, one entry an example, in the same order for all. Exact McNemar,
    Holm over the comparisons of an entry. Arrays of different length: ValueError, since entries
    played on different examples are never compared. The result is ordered: most robust first.
    """
    _same_examples(robust)
    right = {name: int(np.count_nonzero(held)) for name, held in robust.items()}
    pvalues = {pair: compare(*map(robust.__getitem__, pair)) for pair in combinations(robust, 2)}
    pvalues |= {(b, a): p for (a, b), p in pvalues.items()}
    places = {name: _places(name, right, pvalues) for name in robust}
    order = sorted(robust, key=lambda name: (-right[name], places[name], name))
    ranks: dict[str, RankRange] = {}
    group, first = 0, 0
    for position, name in enumerate(order, start=1):
        best, worst = places[name]
        if group == 0 or best > first:
            group, first = group + 1, position
        ranks[name] = RankRange(best, worst, group)
    return ranks


def _same_examples(robust: Mapping[str, npt.NDArray[np.bool_]]) -> None:
    lengths = {len(held) for held in robust.values()}
    if len(lengths) > 1:
        raise ValueError(
            f"entries came with {', '.join(map(str, sorted(lengths)))} examples; "
            "only entries played on the same examples can be compared."
        )


def _places(
    name: str, right: Mapping[str, int], pvalues: Mapping[tuple[str, str], float]
) -> tuple[int, int]:
    others = [other for other in right if other != name]
    said = holm([pvalues[name, other] for other in others])
    differ = [other for other, apart in zip(others, said, strict=True) if apart]
    better = sum(right[other] > right[name] for other in differ)
    return 1 + better, len(right) - (len(differ) - better)


def compare(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """McNemar's p of two entries on the same examples [n] bool."""
    return mcnemar(int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a)))


@dataclass(frozen=True)
class Count:
    """k of n, with its 95 % Wilson interval as fractions."""

    k: int
    n: int
    low: float
    high: float

"""Exact paired comparison of two attacks, or of two groups of attacks, on the same examples.

An example is paired where both evaluated it. Examples that are wrong on the clean image count for
neither.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from bench.results.example_results import Bits, DefenseResult

P_LIMIT = 0.001
"""A warning needs a one-sided exact p-value below this."""

LEAST_POINTS = 0.02
"""A warning needs a difference of at least this share of the paired examples."""

LEAST_PAIRS = next(n for n in range(1, 99) if 0.5**n < P_LIMIT)
"""With fewer right examples no outcome could be significant."""


class PairedCounts(NamedTuple):
    """The numbers of examples that each of two attacks breaks, on the examples of both."""

    first: int
    """Broken by the first attack."""
    second: int
    """Broken by the second attack."""
    only_first: int
    only_second: int
    right: int
    """Paired examples that are right on the clean image."""
    n: int
    """Paired examples."""

    @property
    def is_testable(self) -> bool:
        """Whether there are enough right examples for a significant difference."""
        return self.right >= LEAST_PAIRS

    @property
    def difference(self) -> int:
        """How many more the first attack breaks; negative where it breaks fewer."""
        return self.only_first - self.only_second

    @property
    def p(self) -> float:
        """The exact one-sided p-value for the first attack breaking more (McNemar)."""
        return binomial_tail(self.only_first, self.only_first + self.only_second)

    @property
    def needed(self) -> int:
        """The smallest difference that may be a warning."""
        return math.ceil(LEAST_POINTS * self.n)

    @property
    def is_significant(self) -> bool:
        """Whether the first attack breaks more, by the frozen rule of p-value and difference."""
        return self.p < P_LIMIT and self.difference >= self.needed

    @property
    def numbers(self) -> str:
        """The figures of the comparison, and what a warning needs."""
        return (
            f"{self.only_first} are broken by the former alone and {self.only_second} by the latter"
            f" alone: a difference of {self.difference:+d}, p = {self.p:.2g} (exact, one-sided);"
            f" a warning needs p < {P_LIMIT:g} and a difference of at least {self.needed}"
        )


def binomial_tail(k: int, n: int) -> float:
    """P(X >= k) for X binomial(n, 1/2), from whole numbers.

    >>> binomial_tail(10, 10) == 2**-10
    True
    """
    term = math.comb(n, k)
    total = 0
    for i in range(k, n + 1):
        total += term
        term = term * (n - i) // (i + 1)
    return total / (1 << n)


def tail_of_share(k: int, n: int, share: float) -> float:
    """P(X >= k) for X binomial(n, share).

    >>> round(tail_of_share(2, 3, 0.5), 6)
    0.5
    """
    ways = math.lgamma(n + 1) + n * math.log1p(-share)
    odds = math.log(share) - math.log1p(-share)
    logs = (ways - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * odds for i in range(k, n + 1))
    return min(1.0, math.fsum(map(math.exp, logs)))


def paired_counts(
    result: DefenseResult, first: Collection[str], second: Collection[str]
) -> PairedCounts:
    """Compare the union of the first attacks with the union of the second ones.

    A group evaluated an example where one of its attacks did.
    """
    return count_pairs(
        result.clean,
        evaluated_by(result, first) & evaluated_by(result, second),
        result.broken_by(first),
        result.broken_by(second),
    )


def count_pairs(clean: Bits, paired: Bits, first: Bits, second: Bits) -> PairedCounts:
    """Counts from what is right, paired, and broken by either, each [n]."""
    a, b = (broken & paired & clean for broken in (first, second))
    return PairedCounts(
        int(a.sum()),
        int(b.sum()),
        int((a & ~b).sum()),
        int((b & ~a).sum()),
        int((paired & clean).sum()),
        int(paired.sum()),
    )


def evaluated_by(result: DefenseResult, attacks: Collection[str]) -> Bits:
    """[n]: evaluated by one of the attacks."""
    found = np.zeros(len(result.clean), np.bool_)
    for name in attacks:
        found |= result.attacks[name].evaluated
    return found

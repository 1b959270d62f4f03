"""Audits by a random sample: how many examples an attack that was run on some would break of all.

A sample without replacement from a finite population has hypergeometric counts, so the bounds are
exact (Clopper and Pearson 1934, with the hypergeometric instead of the binomial distribution).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from bench.core.hashing import digest

AUDIT_LEVEL = 0.95
"""Confidence of the upper bound."""
BOUND = 0.03
"""The share of all examples that the bound of an audit without a success may reach."""


@dataclass(frozen=True)
class Audit:
    """What a stronger suite broke of a random sample of the survivors of a cheaper one."""

    fell: int
    """Examples of the sample that it broke."""
    sample: int
    population: int
    """Survivors from which the sample was drawn."""
    n: int
    """All examples, of which the figure is a share."""
    whole: bool = False
    """Whether the stronger suite has met every survivor."""

    @property
    def most(self) -> int:
        """Upper bound on the examples that the stronger suite would still break."""
        if self.whole:
            return 0
        return upper_bound(self.population, self.sample, self.fell) - self.fell

    @property
    def passed(self) -> bool:
        """Whether nothing of the sample fell."""
        return self.fell == 0

    @property
    def sentence(self) -> str:
        """The audit in words.

        >>> print(Audit(0, 49, 289, 500).sentence)
        0 of 49 audited survivors fell to standard (95 %: at most 15 more of 500, 3.0 points)
        """
        found = f"{self.fell} of {self.sample} audited survivors fell to standard"
        if self.whole:
            return f"{found}, which has met all survivors"
        points = f"{100 * self.most / max(self.n, 1):.1f} points"
        return (
            f"{found} ({100 * AUDIT_LEVEL:.0f} %: at most {self.most} more of {self.n}, {points})"
        )


def upper_bound(population: int, sample: int, fell: int = 0, level: float = AUDIT_LEVEL) -> int:
    """The most members of a population that can have a property of which a sample shows `fell`.

    The largest K with P(X <= fell) > 1 - level, X hypergeometric: the chance that the truth is
    larger is at most 1 - level. Raises ValueError unless 0 <= fell <= sample <= population.

    >>> upper_bound(289, 57), upper_bound(20, 20), upper_bound(20, 0)
    (13, 0, 20)
    """
    if not 0 <= fell <= sample <= population:
        raise ValueError(
            f"{fell} of {sample} of {population}; use 0 <= fell <= sample <= population."
        )
    low, high = fell, population - (sample - fell)
    while low < high:
        middle = (low + high + 1) // 2
        if _at_most(population, middle, sample, fell) > 1 - level:
            low = middle
        else:
            high = middle - 1
    return low


def audit_size(population: int, n: int, share: float = BOUND) -> int:
    """The smallest sample whose bound, where nothing falls, is at most a share of n examples.

    >>> audit_size(289, 500), audit_size(0, 500), audit_size(6_000, 10_000)
    (49, 0, 58)
    """
    low, high = 0, population
    while low < high:
        middle = (low + high) // 2
        if upper_bound(population, middle) <= share * n:
            high = middle
        else:
            low = middle + 1
    return low


def audit_order(n: int, *names: str) -> npt.NDArray[np.int64]:
    """The order [n] in which examples are drawn for an audit: a permutation that the names decide.

    The first m survivors of it are a uniform sample of the survivors, whichever these are, as they
    do not depend on the order.
    """
    seed = int(digest(["audit", *names])[:16], 16)
    return np.random.default_rng(seed).permutation(n)


def _at_most(population: int, marked: int, sample: int, fell: int) -> float:
    """P(X <= fell), X the marked members of a sample without replacement."""
    ways = sum(comb(marked, k) * comb(population - marked, sample - k) for k in range(fell + 1))
    return ways / comb(population, sample)

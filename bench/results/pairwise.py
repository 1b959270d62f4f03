"""What would change a rank: the neighbouring pair, its test, and the examples that are missing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from bench.core.statistics import PairedTest, RankRange, mcnemar, paired_tests, rank_ranges
from bench.results.example_results import Bits, LeaderboardResults
from bench.results.ranking import RankingRow, ranked_attacks

LEVEL = 0.05
"""Of the family of all pairs of a leaderboard."""

EXACT_DISCORDANT = 200
"""Up to so many discordant examples the exact test decides how many are needed."""


@dataclass(frozen=True)
class Separation:
    """The neighbour of a row whose test comes closest to changing its rank."""

    other: str
    """The row just above or just below."""
    above: bool
    """Whether the other row stands above."""
    only_this: int
    """Examples that only this row has right."""
    only_other: int
    p: float
    adjusted: float
    """Holm-adjusted over all pairs of the leaderboard."""
    tied: bool
    more_examples: int | None
    """How many more examples would tell the pair apart at its present rates of disagreement; 0
    where it is told apart already, None where no number would, as both are right equally often."""

    @property
    def sentence(self) -> str:
        """The separation in words."""
        counts = f"{self.only_this} examples only here, {self.only_other} only there"
        tested = f"{counts}, p = {self.p:.2g}, corrected {self.adjusted:.2g}"
        if not self.tied:
            return f"Differs from {self.other} ({tested})."
        if self.more_examples is None:
            return f"Tied with {self.other} ({tested}); no number of such examples separates them."
        return (
            f"Tied with {self.other} ({tested}); about {self.more_examples:,} more examples of the"
            " same kind would separate them."
        )


def separations(
    robust: Mapping[str, npt.NDArray[np.bool_]],
    ranks: Mapping[str, RankRange] | None = None,
    apart: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Separation]:
    """What would change the rank of each row, by name; rows without a neighbour are left out.

    `robust[name]` is [n] bool over the same examples. `ranks` are the rows in their order, where
    other rules than the tests also set it; a neighbour that such a rule sets apart is left out, and
    so is one of `apart`, which by name gives the rows of other versions of the attacks.
    Of the rows just above and just below it is a tied one that needs the fewest further examples;
    where neither is tied, the one with the larger p-value. Raises ValueError where the arrays
    differ in length.
    """
    known = rank_ranges(robust) if ranks is None else ranks
    tests = paired_tests(robust, LEVEL)
    by_pair = {frozenset((test.a, test.b)): test for test in tests}
    told_apart = sum(test.differ for test in tests)
    threshold = LEVEL / max(1, len(tests) - told_apart)
    order = list(known)
    n = len(next(iter(robust.values()), ()))
    found = {}
    for place, name in enumerate(order):
        near = [(o, True) for o in order[max(0, place - 1) : place]]
        near += [(o, False) for o in order[place + 1 : place + 2]]
        options = [
            _separation(by_pair[frozenset((name, other))], name, n, threshold, above=above)
            for other, above in near
            if by_pair[frozenset((name, other))].differ != (other in known[name].tied)
            and other not in (apart or {}).get(name, ())
        ]
        if options:
            found[name] = min(options, key=_distance_from_change)
    return found


def ranked_bits(results: LeaderboardResults, rows: Iterable[RankingRow]) -> dict[str, Bits]:
    """The examples by which the rows with a rank are compared, by name; arrays [n]."""
    return {
        row.defense: results.defenses[row.defense].robust(ranked_attacks(results, row.flags))
        for row in rows
        if row.rank
    }


def row_separations(
    results: LeaderboardResults, rows: Sequence[RankingRow]
) -> dict[str, Separation]:
    """What would change the rank of each row of a ranking, given in its order."""
    ranked = {row.defense: row.rank for row in rows if row.rank is not None}
    return separations(ranked_bits(results, rows), ranked, {row.defense: row.apart for row in rows})


def _separation(
    test: PairedTest, name: str, n: int, threshold: float, *, above: bool
) -> Separation:
    mine, theirs = (test.only_a, test.only_b) if test.a == name else (test.only_b, test.only_a)
    return Separation(
        other=test.b if test.a == name else test.a,
        above=above,
        only_this=mine,
        only_other=theirs,
        p=test.p,
        adjusted=test.adjusted,
        tied=not test.differ,
        more_examples=0 if test.differ else further_examples(mine, theirs, n, threshold),
    )


def _distance_from_change(found: Separation) -> tuple[bool, float, float]:
    needed = math.inf if found.more_examples is None else found.more_examples
    return not found.tied, needed, -found.p


def further_examples(only_a: int, only_b: int, n: int, threshold: float) -> int | None:
    """How many more examples bring a pair's p-value to the threshold, at its present rates.

    Of n examples `only_a` and `only_b` are discordant. In Holm's procedure the threshold of a tied
    pair is the level over the number of pairs that are not told apart. More examples are taken to
    split as the present ones do, the smaller count rounded up. Up to EXACT_DISCORDANT discordant
    examples the exact test decides, beyond that the normal approximation with continuity
    correction. None where both counts are equal. Raises ValueError where n is less than the counts.
    """
    discordant = only_a + only_b
    if discordant > n:
        raise ValueError(f"{discordant} discordant examples of {n} came; they cannot exceed n.")
    if only_a == only_b:
        return None
    share = min(only_a, only_b) / discordant
    needed = _exact_discordant(discordant, share, threshold)
    if needed is None:
        needed = max(discordant + 1, _normal_discordant(share, threshold))
    return max(0, math.ceil(needed * n / discordant) - n)


def _exact_discordant(start: int, share: float, threshold: float) -> int | None:
    """The first number of discordant examples from `start` at which the exact test rejects."""
    for total in range(start, EXACT_DISCORDANT + 1):
        fewer = math.ceil(total * share - 1e-9)
        if mcnemar(total - fewer, fewer) <= threshold:
            return total
    return None


def _normal_discordant(share: float, threshold: float) -> int:
    """D with (D (1 - 2 share) - 1)^2 = z^2 D: the corrected McNemar statistic at its quantile."""
    z, gap = -NormalDist().inv_cdf(threshold / 2), 1 - 2 * share
    root = (z + math.sqrt(z * z + 4 * gap)) / (2 * gap)
    return math.ceil(root * root)


OTHER_VERSIONS = "Evaluated with different versions of a required attack, so never called tied."


def pair_records(
    robust: Mapping[str, npt.NDArray[np.bool_]], apart: Mapping[str, Collection[str]] | None = None
) -> Sequence[dict[str, object]]:
    """Every pair of the family as JSON values, by ascending p-value, then by name.

    `robust[name]` is [n] bool over the same examples. A pair of `apart`, which by name gives the
    rows of other versions of the attacks, has a note and is never tied.
    """
    tests = sorted(paired_tests(robust, LEVEL), key=lambda test: (test.p, test.a, test.b))
    return [
        {**test._asdict(), "better": test.better, "tied": False, "note": OTHER_VERSIONS}
        if test.b in (apart or {}).get(test.a, ())
        else {**test._asdict(), "better": test.better, "tied": not test.differ}
        for test in tests
    ]

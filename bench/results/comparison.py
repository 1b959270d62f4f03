"""Paired comparisons of named attacks over defenses, or of named defenses; torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.errors import BenchError
from bench.core.statistics import (
    Count,
    PairedDifference,
    count_interval,
    holm_adjusted,
    mcnemar,
    paired_difference,
)
from bench.results.example_results import (
    Bits,
    DefenseResult,
    LeaderboardResults,
    load_results,
)
from bench.results.leaderboards import Leaderboard
from bench.store import Store

FAMILY_LEVEL = 0.05
"""Of the whole family of pairs in one comparison."""


@dataclass(frozen=True)
class PairComparison:
    """Two attacks against one defense, or two defenses, on the same examples."""

    defense: str
    """The defense that both attacks run against; empty where two defenses are compared."""
    a: str
    b: str
    n: int
    """Examples that are right before the attacks, or in the comparison of defenses all of them."""
    both: int
    """Examples that both attacks break, or that are robust for both defenses."""
    only_a: tuple[int, ...]
    """Examples that only the first one breaks, or for which only it is robust."""
    only_b: tuple[int, ...]
    p: float
    """Of the exact McNemar test."""
    adjusted: float
    """Holm-adjusted over all pairs of the comparison."""

    @property
    def winner(self) -> str:
        """The one with more examples of its own, where the test tells the two apart; else empty."""
        if self.adjusted > FAMILY_LEVEL:
            return ""
        return self.a if len(self.only_a) > len(self.only_b) else self.b

    @property
    def difference(self) -> PairedDifference:
        """The share that the first one has less that of the second."""
        return paired_difference(len(self.only_a), len(self.only_b), self.n)

    def record(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self) | {"winner": self.winner, "difference": self.difference._asdict()}


@dataclass(frozen=True)
class EntryComparison:
    """Some defenses of one leaderboard, on the same examples."""

    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    """The attacks that all of them met, by name."""
    pairs: tuple[PairComparison, ...]
    """Robust examples over these attacks."""
    clean: tuple[Count, ...]
    """By defense: right on the clean images."""
    robust: tuple[Count, ...]
    """By defense: robust over these attacks."""
    by_attack: tuple[tuple[Count, ...], ...]
    """By attack, then by defense: not broken by it, of the examples that it ran on."""
    labels: npt.NDArray[np.int16]
    """[n]: true classes of the examples."""
    classes: tuple[str, ...]


def load_defense_comparison(
    store: Store, leaderboard: Leaderboard, defenses: Sequence[str]
) -> EntryComparison:
    """`compare_defenses` of a leaderboard."""
    return compare_defenses(load_results(store, leaderboard), defenses)


def compare_defenses(results: LeaderboardResults, defenses: Sequence[str]) -> EntryComparison:
    """Defenses on the same examples, over the attacks that all of them met.

    Raises BenchError where a name is unknown here, fewer than two came, they met no attack in
    common, or they were evaluated on different examples.
    """
    _require_known(defenses, results.defenses, "defense")
    pairs = compare(results, defenses)
    chosen = [results.defenses[name] for name in dict.fromkeys(defenses)]
    common = sorted(set.intersection(*(set(result.attacks) for result in chosen)))
    return EntryComparison(
        tuple(result.defense for result in chosen),
        tuple(common),
        tuple(pairs),
        tuple(_share(result.clean) for result in chosen),
        tuple(_share(result.robust(common)) for result in chosen),
        tuple(
            tuple(
                _share(result.robust([name])[result.attacks[name].evaluated]) for result in chosen
            )
            for name in common
        ),
        chosen[0].labels,
        chosen[0].classes,
    )


def _share(flags: Bits) -> Count:
    return count_interval(int(flags.sum()), len(flags))


class _Pair(NamedTuple):
    """Two names and the examples that each of them has."""

    defense: str
    a: str
    b: str
    of_a: Bits
    of_b: Bits
    at: npt.NDArray[np.int64]
    """[n]: the numbers of the examples."""


def compare(
    results: LeaderboardResults, names: Sequence[str], defenses: Sequence[str] = ()
) -> list[PairComparison]:
    """All pairs of the named attacks against each defense, or of the named defenses.

    Defenses are compared over the attacks that all of them met. Attacks are compared where both are
    done, on the examples that both ran on.

    Args:
        results: of one leaderboard.
        names: at least two attacks, or two defenses.
        defenses: the defenses against which attacks are compared; empty: all.

    Returns:
        The pairs in the order of the names; the tests are one Holm-corrected family.

    Raises:
        BenchError: a name is unknown here, or there is nothing that the pairs have in common.
    """
    chosen = list(dict.fromkeys(names))
    if len(chosen) < 2:
        raise BenchError(f"{len(chosen)} name came; two attacks or two defenses are compared.")
    done = {attack for result in results.defenses.values() for attack in result.attacks}
    if set(chosen) <= done:
        wanted = list(defenses) or list(results.defenses)
        _require_known(wanted, results.defenses, "defense")
        found = list(_attack_pairs(results.defenses, chosen, wanted))
    else:
        known = [*results.defenses, *sorted(done)]
        _require_known(chosen, known, "attack or defense")
        _require_known(chosen, results.defenses, "defense, as another of these names is")
        found = list(_defense_pairs({name: results.defenses[name] for name in chosen}))
    if not found:
        raise BenchError(f"no defense was evaluated with two of {', '.join(chosen)}.")
    return _tested(found)


def _require_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    missing = [name for name in names if name not in set(known)]
    if missing:
        raise BenchError(
            f"this leaderboard has no {what} {', '.join(map(repr, missing))} with a finished cell; "
            "`bench report` lists them."
        )


def _attack_pairs(
    results: Mapping[str, DefenseResult], attacks: Sequence[str], defenses: Iterable[str]
) -> Iterator[_Pair]:
    """Each pair of attacks against each defense, with the examples that each one breaks."""
    for name in defenses:
        result = results[name]
        for a, b in combinations(attacks, 2):
            if a in result.attacks and b in result.attacks:
                one, two = result.attacks[a], result.attacks[b]
                ran = result.clean & one.evaluated & two.evaluated
                at = np.flatnonzero(ran)
                yield _Pair(name, a, b, one.broken[ran], two.broken[ran], at)


def _defense_pairs(results: Mapping[str, DefenseResult]) -> Iterator[_Pair]:
    """Each pair of defenses, with the examples for which each one is robust."""
    common = set.intersection(*(set(result.attacks) for result in results.values()))
    if not common:
        raise BenchError("these defenses met no attack in common; run one against all of them.")
    robust = {name: result.robust(common) for name, result in results.items()}
    for a, b in combinations(results, 2):
        if results[a].examples != results[b].examples:
            raise BenchError(f"{a} and {b} were evaluated on different examples.")
        yield _Pair("", a, b, robust[a], robust[b], np.arange(len(robust[a])))


def _tested(pairs: Sequence[_Pair]) -> list[PairComparison]:
    only = [(p.at[p.of_a & ~p.of_b].tolist(), p.at[p.of_b & ~p.of_a].tolist()) for p in pairs]
    pvalues = [mcnemar(len(of_a), len(of_b)) for of_a, of_b in only]
    return [
        PairComparison(
            pair.defense, pair.a, pair.b, len(pair.at), int((pair.of_a & pair.of_b).sum()),
            tuple(of_a), tuple(of_b), p, adjusted,
        )
        for pair, (of_a, of_b), p, adjusted in zip(
            pairs, only, pvalues, holm_adjusted(pvalues), strict=True
        )
    ]  # fmt: skip

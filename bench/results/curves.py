"""Curves of robust accuracy: against the radius, and against the steps of an attack's variants."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from bench.core.errors import BenchError
from bench.core.statistics import Count, count_interval
from bench.core.variant_names import (
    base_name,
    is_variant,
    split_variant,
    variant_name,
    variant_order,
)
from bench.results.example_results import DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.store import Store

POINT_COLUMNS = ("defense", "attack", "x", "k", "n", "low", "high")


@dataclass(frozen=True)
class ParameterCurve:
    """Robust accuracy of one defense under one attack at several values of a parameter."""

    defense: str
    attack: str
    points: tuple[tuple[float, Count], ...]
    """(value, examples that are right and unbroken), by value."""

    def rows(self) -> list[tuple[object, ...]]:
        """The values of POINT_COLUMNS, one row for each point."""
        return [
            (self.defense, self.attack, x, count.k, count.n, count.low, count.high)
            for x, count in self.points
        ]


def curves_over_radii(
    store: Store,
    board: Leaderboard,
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
    radii: Collection[float] | None = None,
) -> list[ParameterCurve]:
    """Accuracy against the radius, over the leaderboards that differ from `board` in it alone.

    Each curve begins with clean accuracy at radius 0. Attacks that minimise their perturbation
    are evaluated within each radius like the others.

    Args:
        store: the database.
        board: one of the leaderboards.
        defenses: names or patterns; empty: all.
        attacks: names or patterns; empty: those that are done within two radii or more.
        radii: the radii of the curves; None: all that have results.

    Returns:
        The curves by defense and attack.

    Raises:
        BenchError: a name is unknown, or no attack is done within two radii.
    """
    rows = results_over_radii(store, board, radii)
    names = chosen_names(defenses, rows, "defense")
    known = list(dict.fromkeys(a for row in rows.values() for _, one in row for a in one.attacks))
    several = [
        a
        for a in sorted(known, key=variant_order)
        if any(_radii_of(row, a) > 1 for row in rows.values())
    ]
    wanted = chosen_names(attacks, known, "attack") if attacks else several
    found = [
        ParameterCurve(name, attack, points)
        for name in names
        for attack in wanted
        if len(points := _points_over_radii(rows[name], attack)) > 2
    ]
    if not found:
        raise BenchError(
            f"no attack is done within two radii of {board.set['name']} on {board.dataset}; `bench "
            f"run --threat {base_name(board.name)} --eps 2/255,4/255,8/255` evaluates some."
        )
    return found


def results_over_radii(
    store: Store, board: Leaderboard, radii: Collection[float] | None = None
) -> dict[str, list[tuple[float, DefenseResult]]]:
    """By defense the radii and results of the version of it that is on most leaderboards.

    Args:
        store: the database.
        board: one of the leaderboards that differ in their radius alone.
        radii: the radii that are loaded; None: all that have results.
    """
    alike = [board, *board.other_radii(leaderboards(store))]
    chosen = [one for one in alike if radii is None or one.radius in radii]
    results = [load_results(store, one) for one in sorted(chosen, key=lambda one: one.radius)]
    versions: dict[str, dict[str, list[tuple[float, DefenseResult]]]] = {}
    for one in results:
        for name, result in one.defenses.items():
            if result.has_clean_pass:
                digests = versions.setdefault(name, {})
                digests.setdefault(result.digest, []).append((one.leaderboard.radius, result))
    return {name: max(found.values(), key=len) for name, found in sorted(versions.items())}


def _radii_of(row: Sequence[tuple[float, DefenseResult]], attack: str) -> int:
    return sum(attack in result.attacks for _, result in row)


def _points_over_radii(
    row: Sequence[tuple[float, DefenseResult]], attack: str
) -> tuple[tuple[float, Count], ...]:
    done = [(radius, result) for radius, result in row if attack in result.attacks]
    if not done:
        return ()
    first = done[0][1]
    among = ~first.attacks[attack].left_out
    clean = count_interval(int((first.clean & among).sum()), int(among.sum()))
    start = () if done[0][0] == 0 else ((0.0, clean),)
    return (*start, *((radius, count_under(result, attack)) for radius, result in done))


def curves_over_steps(
    results: LeaderboardResults, defenses: Sequence[str] = (), attacks: Sequence[str] = ()
) -> list[ParameterCurve]:
    """Accuracy against the steps of one restart, over variants that differ in their steps alone.

    Args:
        results: of one leaderboard, in full mode.
        defenses: names or patterns; empty: all.
        attacks: names or patterns of attacks or variants, without their steps; empty: all.

    Returns:
        The curves by defense and attack.

    Raises:
        BenchError: a name is unknown, or no attack is done with several numbers of steps.
    """
    names = chosen_names(defenses, results.defenses, "defense")
    families = _families(attack for one in results.defenses.values() for attack in one.attacks)
    wanted = chosen_names(attacks, families, "attack") if attacks else list(families)
    found = [
        ParameterCurve(name, family, points)
        for name in names
        for family in wanted
        if len(points := _points_over_steps(results.defenses[name], families[family])) > 1
    ]
    if not found:
        raise BenchError(
            f"no attack is done with several numbers of steps on {results.leaderboard.name}; "
            f"`bench run --threat {results.leaderboard.name} --set pgd.steps=5,10,20,40` evaluates "
            "some."
        )
    return found


def _families(attacks: Iterable[str]) -> dict[str, list[str]]:
    """The variants that differ in their steps alone, by their name without the steps."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(attacks), key=variant_order):
        base, settings = split_variant(name) if is_variant(name) else (name, {})
        settings.pop("steps", None)
        found.setdefault(variant_name(base, settings) if settings else base, []).append(name)
    return {family: names for family, names in found.items() if len(names) > 1}


def _points_over_steps(
    result: DefenseResult, variants: Sequence[str]
) -> tuple[tuple[float, Count], ...]:
    done = [result.attacks[name] for name in variants if name in result.attacks]
    points = {
        float(attack.card.steps): count_under(result, attack.card.name)
        for attack in done
        if attack.card.steps
    }
    return tuple(sorted(points.items()))


def count_under(result: DefenseResult, attack: str) -> Count:
    """Right and unbroken examples under an attack, of those that it runs on."""
    among = ~result.attacks[attack].left_out
    right = result.robust([attack]) & among
    return count_interval(int(np.count_nonzero(right)), int(np.count_nonzero(among)))


def chosen_names(
    names: Sequence[str], known: Iterable[str] | Mapping[str, object], what: str
) -> list[str]:
    """The known names that names and patterns mean, each once; all without any.

    Raises BenchError where one means nothing.
    """
    every = list(known)
    if not names:
        return every
    found: list[str] = []
    for name in names:
        pattern = name.replace("[", "[[]")
        meant = [name] if name in every else [one for one in every if fnmatchcase(one, pattern)]
        if not meant:
            raise BenchError(f"there is no {what} {name!r} here; there are {', '.join(every)}.")
        found += meant
    return list(dict.fromkeys(found))

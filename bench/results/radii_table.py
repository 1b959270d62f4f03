"""Robust examples of each attack by radius, as one table, with its contradictions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.core.radii import exact_fraction, radius_text
from bench.core.statistics import count_interval, mcnemar
from bench.results.curves import (
    chosen_names,
    count_under,
    curves_over_radii,
    results_over_radii,
)
from bench.results.evaluation_result import WORST_CASE
from bench.results.example_results import Bits, DefenseResult
from bench.results.leaderboards import Leaderboard
from bench.results.paired_attacks import P_LIMIT
from bench.results.report_tables import ReportCell, ReportTable
from bench.results.text_table import TextColumn
from bench.store import Store

NOT_DONE = "-"
ByRadius = Sequence[tuple[float, DefenseResult]]


@dataclass(frozen=True)
class RadiiTable:
    """Robust examples by attack and radius."""

    table: ReportTable
    contradictions: tuple[str, ...]
    """Sentences on figures that rise with the radius, or are lower under a one-step attack."""


def radii_table(
    store: Store,
    board: Leaderboard,
    radii: Collection[float] | None = None,
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
) -> RadiiTable:
    """The examples that are right and unbroken, by defense, attack and radius.

    The column of radius 0 has clean accuracy. An attack that ran on the first examples alone is
    counted over those.

    Args:
        store: the database.
        board: one of the leaderboards that differ in their radius alone.
        radii: the radii of the table; None: all that have results.
        defenses: names or patterns; empty: all.
        attacks: names or patterns; empty: those that are done within two radii or more.

    Raises:
        BenchError: a name is unknown, or no attack is done within two radii.
    """
    # It has the rules on which attacks and which version of a defense are shown.
    curves = curves_over_radii(store, board, defenses, attacks, radii)
    found = results_over_radii(store, board, radii)
    names = chosen_names(defenses, found, "defense")
    shown = sorted({radius for name in names for radius, _ in found[name]} - {0.0})
    rows: list[tuple[ReportCell, ...]] = []
    contradictions: list[str] = []
    for name in dict.fromkeys(curve.defense for curve in curves):
        own = [curve.attack for curve in curves if curve.defense == name]
        rows += _rows(name, found[name], own, shown)
        contradictions += _rising(name, found[name], own)
        contradictions += _one_step_stronger(name, found[name], own)
    columns = (
        TextColumn("Defense", "left"), TextColumn("Attack", "left"), TextColumn("0"),
        *(TextColumn(radius_text(exact_fraction(radius))) for radius in shown),
    )  # fmt: skip
    title = f"Robust examples by {board.set['name']} radius on {board.dataset}"
    return RadiiTable(ReportTable("radii", title, columns, rows, 2, board.n), tuple(contradictions))


def _rows(
    defense: str, results: ByRadius, attacks: Sequence[str], radii: Sequence[float]
) -> Iterator[tuple[ReportCell, ...]]:
    """A row for each attack, and one for the worst case of those that are done everywhere."""
    by_radius = dict(results)
    first = results[0][1]
    clean = count_interval(int(first.clean.sum()), len(first.clean))
    for attack in attacks:
        yield (
            defense, attack, clean,
            *(
                count_under(by_radius[radius], attack)
                if radius in by_radius and attack in by_radius[radius].attacks
                else NOT_DONE
                for radius in radii
            ),
        )  # fmt: skip
    everywhere = [a for a in attacks if all(r in by_radius for r in radii)
                  and all(a in by_radius[r].attacks for r in radii)]  # fmt: skip
    if len(everywhere) > 1:
        worst = [by_radius[radius].robust(everywhere) for radius in radii]
        counts = [count_interval(int(np.count_nonzero(one)), len(one)) for one in worst]
        yield defense, WORST_CASE, clean, *counts


def _rising(defense: str, results: ByRadius, attacks: Sequence[str]) -> Iterator[str]:
    """Attacks that leave more examples within a larger radius than within a smaller one."""
    for attack in attacks:
        done = [(radius, one) for radius, one in results if attack in one.attacks]
        for (small, near), (large, far) in pairwise(done):
            less, more = near.robust([attack]), far.robust([attack])
            if _exceeds(more, less):
                yield (
                    f"{attack} on {defense} leaves {more.sum()} within {large:.4g} and "
                    f"{less.sum()} within {small:.4g}: a larger radius leaves more."
                )


def _one_step_stronger(defense: str, results: ByRadius, attacks: Sequence[str]) -> Iterator[str]:
    """Iterative attacks that leave more examples than a one-step attack within the same radius."""
    for radius, result in results:
        done = [result.attacks[name].card for name in attacks if name in result.attacks]
        for one in (card.name for card in done if card.steps == 1):
            for many in (card.name for card in done if (card.steps or 0) > 1):
                less, more = result.robust([one]), result.robust([many])
                if _exceeds(more, less):
                    yield (
                        f"{many} on {defense} leaves {more.sum()} within {radius:.4g} and {one} "
                        f"{less.sum()}: the iterative attack is weaker."
                    )


def _exceeds(more: Bits, less: Bits) -> bool:
    """Whether more examples are right in the first [n] bool, by the exact McNemar test."""
    only_more, only_less = int((more & ~less).sum()), int((less & ~more).sum())
    return only_more > only_less and mcnemar(only_less, only_more) < P_LIMIT

"""Several perturbation sets of one data set in one score: their union, and their average.

In the union an example is robust where no attack in any set broke it (Tramer and Boneh,
arXiv:1904.13000); the average is the mean over the sets. Both are paired: an example counts where
it was evaluated in every set of the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.core.cells import BALANCED_ORDER
from bench.core.corruptions import CORRUPTION_SET
from bench.core.errors import BenchError
from bench.core.statistics import Z95, Count, Interval, count_interval, paired_tests
from bench.results.example_results import Bits, DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.paired_attacks import evaluated_by
from bench.results.ranking import coverage
from bench.results.report_tables import NOT_COUNTED, CellInterval, ReportCell, ReportTable
from bench.results.text_table import TextColumn
from bench.store import Store

SCORED_SETS = ("Linf", "L2", "L1", "rotation-translation", CORRUPTION_SET)
"""Names of the perturbation sets of the score, in the order of its columns."""
HEADINGS = ("Linf", "L2", "L1", "Rotation", "Corruption")


@dataclass(frozen=True)
class SetFigure:
    """What one defense keeps in one set, on the examples that all sets of its row share."""

    threat: str
    """Name of the threat model."""
    robust: Count
    complete: bool
    """Whether every attack that the threat model requires is done."""


@dataclass(frozen=True)
class UnionRow:
    """One defense over several sets."""

    defense: str
    sets: Mapping[str, SetFigure]
    """By name of the set; those without a result are absent."""
    clean: Count
    union: Count
    """Examples that are right and that no attack in any set broke."""
    average: float
    """Mean over the sets of the share of robust examples."""
    interval: Interval
    """95 % interval of the average."""
    tied: tuple[str, ...] = ()
    """Defenses with all the sets that the tests of the union do not tell apart from this one."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The sets of the score without a result of this defense."""
        return tuple(name for name in SCORED_SETS if name not in self.sets)

    @property
    def incomplete(self) -> tuple[str, ...]:
        """The sets in which a required attack is missing."""
        return tuple(name for name, figure in self.sets.items() if not figure.complete)

    @property
    def note(self) -> str:
        """The sets that are missing or incomplete, in words; empty where there is none."""
        parts = [f"without {', '.join(self.missing)}"] if self.missing else []
        parts += [f"required attacks open in {', '.join(self.incomplete)}"] * bool(self.incomplete)
        return "; ".join(parts)


@dataclass(frozen=True)
class SetUnion:
    """The score over several sets of the defenses of one data set."""

    dataset: str
    n: int
    """The largest number of examples of a row."""
    rows: tuple[UnionRow, ...]
    """Those with all sets first, each part by the union."""


def load_set_union(
    store: Store, dataset: str | None = None, example_order: str = BALANCED_ORDER
) -> SetUnion:
    """The score over several sets of a data set; None: the first one in the database.

    Of each set the first threat model is read whose goal is untargeted and in which a defense was
    evaluated by the full matrix, with the most examples first. Raises BenchError where the
    database has fewer than two of the sets.
    """
    known = [one for one in leaderboards(store) if _is_scored(one, example_order)]
    chosen = dataset or next((one.dataset for one in known), "")
    found: dict[str, list[LeaderboardResults]] = {}
    for board in known:
        if board.dataset == chosen:
            found.setdefault(str(board.set["name"]), []).append(load_results(store, board))
    if len(found) < 2:
        raise BenchError(
            f"a score over several sets needs results in two of {', '.join(SCORED_SETS)}; "
            f"{chosen or 'the database'} has {', '.join(found) or 'none'}. Evaluate another one "
            "with `bench run --threat`."
        )
    return set_union(chosen, {name: found[name] for name in SCORED_SETS if name in found})


def _is_scored(board: Leaderboard, example_order: str) -> bool:
    """Whether a leaderboard may stand for its set."""
    untargeted = board.goal["kind"] == "untargeted" and not board.is_variant
    whole = board.mode == "full" and board.example_order == example_order
    # Half, double and whole-box radii serve checks: they are evidence for others, and ranked never.
    counts = board.ranked or str(board.set["name"]) in SCORED_SETS[3:]
    return untargeted and whole and counts and board.set["name"] in SCORED_SETS


def set_union(dataset: str, results: Mapping[str, Sequence[LeaderboardResults]]) -> SetUnion:
    """The score from the results in each set, the first that has a defense before others."""
    rows: list[UnionRow] = []
    bits: dict[str, Bits] = {}
    masks: dict[str, Bits] = {}
    names = {name for some in results.values() for one in some for name in one.defenses}
    for name in sorted(names):
        parts = _parts_of(name, results)
        if len(parts) > 1:
            masks[name] = _common(part for _, part in parts.values())
            row, bits[name] = _row(name, parts, masks[name])
            rows.append(row)
    tied = _ties([row for row in rows if not row.missing], bits, masks)
    rows = [replace(row, tied=tied.get(row.defense, ())) for row in rows]
    rows.sort(key=lambda row: (len(row.missing), -row.union.k, -row.average, row.defense))
    return SetUnion(dataset, max((row.union.n for row in rows), default=0), tuple(rows))


_Part = tuple[LeaderboardResults, DefenseResult]


def _parts_of(
    defense: str, results: Mapping[str, Sequence[LeaderboardResults]]
) -> dict[str, _Part]:
    """The results of a defense in each set, of the version that has most of them; by set."""
    versions: dict[str, dict[str, _Part]] = {}
    for name, some in results.items():
        for one in some:
            result = one.defenses.get(defense)
            if result is not None and result.has_clean_pass and result.attacks:
                versions.setdefault(result.digest, {}).setdefault(name, (one, result))
    return max(versions.values(), key=len, default={})


def _common(results: Iterable[DefenseResult]) -> Bits:
    """[n]: examples that every set evaluated; those beyond the shortest list are left out.

    Lists of different length begin with the same images, because each is the first of one order.
    """
    masks = [evaluated_by(result, result.attacks) for result in results]
    n = min(map(len, masks))
    shared: Bits = np.logical_and.reduce([mask[:n] for mask in masks])
    return shared


def _row(defense: str, parts: Mapping[str, _Part], common: Bits) -> tuple[UnionRow, Bits]:
    """The row of a defense, and [n] bool: robust in every set; `common` are the counted ones."""
    kept = {name: result.robust()[: len(common)] & common for name, (_, result) in parts.items()}
    n, union = int(common.sum()), np.logical_and.reduce(list(kept.values()))
    figures = {
        name: SetFigure(
            one.leaderboard.name,
            count_interval(int(kept[name].sum()), n),
            coverage(one, result).done == coverage(one, result).required,
        )
        for name, (one, result) in parts.items()
    }
    clean = next(iter(parts.values()))[1].clean[: len(common)] & common
    average = sum(figure.robust.k for figure in figures.values()) / (n * len(figures)) if n else 0.0
    row = UnionRow(
        defense, figures, count_interval(int(clean.sum()), n),
        count_interval(int(union.sum()), n), average, average_interval(average, n),
    )  # fmt: skip
    return row, union


def average_interval(average: float, n: int) -> Interval:
    """The 95 % interval of a mean of n shares, each between 0 and 1, by Wilson's formula.

    A share varies at most as much as a yes or no with the same mean, so the interval is no shorter
    than it should be; for shares that are all 0 or 1 it is that of a count.

    >>> low, high = average_interval(0.7, 500)  # as of 350 of 500
    >>> round(low, 3), round(high, 3)
    (0.658, 0.739)
    """
    if n == 0:
        return Interval(0.0, 1.0)
    square = Z95 * Z95 / n
    centre = (average + square / 2) / (1 + square)
    spread = average * (1 - average) * square + square * square / 4
    half = math.sqrt(spread) / (1 + square)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def _ties(
    rows: Iterable[UnionRow], bits: Mapping[str, Bits], masks: Mapping[str, Bits]
) -> dict[str, tuple[str, ...]]:
    """By defense: those on the same examples that exact paired tests do not tell apart."""
    groups: dict[bytes, dict[str, Bits]] = {}
    for row in rows:
        mask = masks[row.defense]
        groups.setdefault(np.flatnonzero(mask).tobytes(), {})[row.defense] = bits[row.defense][mask]
    found: dict[str, tuple[str, ...]] = {}
    for group in groups.values():
        for test in paired_tests(group):
            if not test.differ:
                found[test.a] = (*found.get(test.a, ()), test.b)
                found[test.b] = (*found.get(test.b, ()), test.a)
    return found


def union_table(found: SetUnion) -> ReportTable:
    """The score as a table of counts, with the sets that a row lacks."""
    columns = (
        TextColumn("Defense", "left"), TextColumn("Clean"), *map(TextColumn, HEADINGS),
        TextColumn("Union"), TextColumn("95 %"), TextColumn("Average"),
        TextColumn("95 % of it"), TextColumn("Note", "left"),
    )  # fmt: skip
    rows: list[tuple[ReportCell, ...]] = [
        (
            row.defense,
            row.clean,
            *(row.sets[name].robust if name in row.sets else NOT_COUNTED for name in SCORED_SETS),
            row.union,
            CellInterval(row.union),
            f"{100 * row.average:.1f} %",
            f"{100 * row.interval.low:.1f}-{100 * row.interval.high:.1f}",
            row.note,
        )
        for row in found.rows
    ]
    title = f"Several perturbation sets on {found.dataset}"
    return ReportTable("union", title, columns, rows, 1, found.n)

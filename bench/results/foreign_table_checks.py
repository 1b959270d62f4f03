"""Consistency checks of published figures that need no images.

Two figures differ where they are more than two standard errors of their difference apart, after
the rounding of print; without a stated number of examples, more than two points. Where a table
states on how many examples two attacks differ, the exact McNemar test decides instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import combinations, permutations

from bench.core.statistics import mcnemar
from bench.results.foreign_table import (
    PrintedShare,
    PublishedFigure,
    PublishedTable,
    printed_share,
)
from bench.results.paired_attacks import P_LIMIT

UNSTATED_TOLERANCE = 0.02
"""Least difference where no number of examples is stated: two standard errors at n = 5,000."""
HALF_LEVEL = Fraction(1, 510)
"""Radius below which no pixel of an 8-bit image can change by half a grey level."""
TINY_RADIUS_LOSS = 0.2
"""Loss of accuracy within that radius above which a table is doubted."""


class TableState(StrEnum):
    """The result of a check."""

    WARNING = "warning"
    PASSED = "passed"
    NOT_TESTED = "not tested"


Group = tuple[str, str, str, Fraction | None]


@dataclass(frozen=True)
class TableCheck:
    """The result of one check on one or more tables."""

    check: str
    state: TableState
    sentences: tuple[str, ...]
    """What is inconsistent, one sentence each; else what was compared."""


def check_tables(tables: Sequence[PublishedTable]) -> list[TableCheck]:
    """Run every check on tables of the same models."""
    return [_result(check, check(tables)) for check in CHECKS_OF_TABLES]


Comparison = tuple[bool, str]
"""Whether something is inconsistent, and the sentence that says what was compared."""


def _result(
    check: Callable[[Sequence[PublishedTable]], Iterator[Comparison]],
    comparisons: Iterator[Comparison],
) -> TableCheck:
    name, found = check.__name__.replace("_", "-"), list(comparisons)
    wrong = tuple(sentence for is_wrong, sentence in found if is_wrong)
    if wrong:
        return TableCheck(name, TableState.WARNING, wrong)
    if not found:
        return TableCheck(name, TableState.NOT_TESTED, ("The tables have no figures to compare.",))
    return TableCheck(name, TableState.PASSED, (f"{len(found)} comparisons, none inconsistent.",))


def one_step_leaves_less(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """No one-step attack leaves less than an iterative one at the same radius (E04a)."""
    for table in tables:
        for group in _groups(table, by_radius=True):
            for one, many in permutations(group, 2):
                if one.steps == 1 and many.steps is not None and many.steps != 1:
                    yield _one_against_many(table, one, many)


def _one_against_many(
    table: PublishedTable, one: PublishedFigure, many: PublishedFigure
) -> Comparison:
    text = f"{one} leaves {_percent(one)}, {many} leaves {_percent(many)}"
    for pair in table.pairs:
        names = (pair.defense, pair.one_step, pair.iterative)
        same = names == (one.defense, one.attack, many.attack)
        if same and Fraction(pair.eps) == one.eps:
            p = mcnemar(pair.only_one_step, pair.only_iterative)
            wrong = pair.only_iterative > pair.only_one_step and p < P_LIMIT
            counts = f"{pair.only_one_step} and {pair.only_iterative} examples only one of them"
            return wrong, f"{table.name}: {text}; they leave {counts} (p = {p:.2g})."
    return _is_less(one, many), f"{table.name}: {text}: the iterative attack is weaker."


def accuracy_rises_with_radius(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """A larger radius never leaves more examples right (E04e)."""
    for table in tables:
        for group in _groups(table, by_radius=False):
            for small, large in permutations(group, 2):
                if small.attack == large.attack and (small.eps or 0) < (large.eps or 0):
                    yield (
                        _is_less(small, large),
                        f"{table.name}: {small} leaves {_percent(small)}, the larger radius "
                        f"{float(large.eps or 0):.4g} leaves {_percent(large)}.",
                    )


def tiny_radius_has_a_large_effect(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """Within half a grey level an attack takes few points: else distances may exceed eps."""
    for table in tables:
        for figure in _attacked(table):
            clean = _clean_share(table, figure)
            if figure.eps is not None and figure.eps < HALF_LEVEL and clean is not None:
                loss = clean - figure.accuracy.value
                yield (
                    loss > TINY_RADIUS_LOSS,
                    f"{table.name}: {figure} takes {100 * float(loss):.1f} points, though no pixel "
                    "of an 8-bit image changes by half a grey level within that radius; show that "
                    "the distances are within eps, and state its unit.",
                )


def more_effort_is_weaker(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """More steps and restarts of the same attack never leave more examples right."""
    for table in tables:
        for group in _groups(table, by_radius=True):
            for less, more in permutations(group, 2):
                if less.base == more.base and _effort(less, more):
                    yield (
                        _is_less(less, more),
                        f"{table.name}: {less} leaves {_percent(less)} with {less.steps} steps and "
                        f"{less.restarts} restarts, {_percent(more)} with {more.steps} and "
                        f"{more.restarts}.",
                    )


def _effort(less: PublishedFigure, more: PublishedFigure) -> bool:
    """Whether `more` has at least the steps and restarts of `less`, and more of one of them."""
    one, two = (less.steps or 0, less.restarts), (more.steps or 0, more.restarts)
    return 0 < one[0] <= two[0] and one[1] <= two[1] and one != two


def union_exceeds_a_member(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """A worst case lies at or below each of its attacks, and loses no more than all together."""
    for table in tables:
        for group in _groups(table, by_radius=True):
            for union in group:
                members = _members(union, group)
                for member in members if union.is_union else ():
                    yield (
                        _exceeds(union.accuracy, member.accuracy),
                        f"{table.name}: {union} leaves {_percent(union)}, more than "
                        f"{member.attack} alone ({_percent(member)}).",
                    )
                clean = _clean_share(table, union)
                if union.is_union and members and clean is not None:
                    yield _union_bound(table, union, members, clean)


def _members(union: PublishedFigure, group: Sequence[PublishedFigure]) -> list[PublishedFigure]:
    others = [figure for figure in group if not figure.is_union]
    return [f for f in others if not union.union_of or f.attack in union.union_of]


def _union_bound(
    table: PublishedTable,
    union: PublishedFigure,
    members: Sequence[PublishedFigure],
    clean: Fraction,
) -> Comparison:
    least = clean - sum(clean - member.accuracy.value for member in members)
    rounding = union.accuracy.unit + sum(member.accuracy.unit for member in members)
    complete = not union.union_of or len(members) == len(set(union.union_of))
    return (
        complete and union.accuracy.value < least - rounding,
        f"{table.name}: {union} leaves {_percent(union)}, less than all its attacks together can "
        f"({100 * float(least):.2f} %).",
    )


def robust_exceeds_clean(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """No attack leaves more examples right than there are without an attack."""
    for table in tables:
        for figure in _attacked(table):
            clean = table.clean(figure.defense)
            if clean is not None and figure.of != "correct":
                yield (
                    _exceeds(figure.accuracy, clean.accuracy),
                    f"{table.name}: {figure} leaves {_percent(figure)}, and {_percent(clean)} are "
                    "right without an attack.",
                )


def count_and_percentage_differ(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """A printed count is the printed percentage of n; without a count some count is."""
    for figure in (figure for table in tables for figure in table.figures):
        if figure.n is None or figure.n == 0:
            continue
        if figure.count is not None:
            share = Fraction(figure.count, figure.n)
            yield (
                not figure.accuracy.matches(share),
                f"{figure.table}: {figure} is printed as {_percent(figure)}, and {figure.count} of "
                f"{figure.n} are {100 * float(share):.4f} %.",
            )
        else:
            low = math.floor(figure.accuracy.value * figure.n)
            shares = [Fraction(k, figure.n) for k in range(max(0, low - 1), low + 3)]
            yield (
                not any(figure.accuracy.matches(share) for share in shares),
                f"{figure.table}: {figure} is printed as {_percent(figure)}, which is no share of "
                f"{figure.n} examples.",
            )


def count_in_the_text_differs(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """A statement on k of n rows is what the rows say."""
    for table in tables:
        for claim in table.claims:
            rows = [f for f in table.figures if not claim.tag or claim.tag in f.tags]
            limit = printed_share(claim.at_most, 100).value if claim.at_most else Fraction(1)
            k = sum(row.accuracy.value <= limit for row in rows)
            stated = f"of the rows {claim.tag!r}, {claim.k} of {claim.n}"
            stated += f" have at most {claim.at_most} %" if claim.at_most else " are there"
            yield (
                (k, len(rows)) != (claim.k, claim.n),
                f"{table.name}: the text says that {stated}; there are {k} of {len(rows)}.",
            )


def tables_contradict(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """Two tables of the same model agree, whichever denominator an unclear one has."""
    for one, two in combinations(tables, 2):
        for a in one.figures:
            for b in two.figures:
                if one.data == two.data and _key(a) == _key(b):
                    yield (
                        _contradict(one, a, two, b),
                        f"{a} leaves {_percent(a)} in {one.name} and {_percent(b)} in {two.name}.",
                    )


def _contradict(
    one: PublishedTable, a: PublishedFigure, two: PublishedTable, b: PublishedFigure
) -> bool:
    clean = one.clean(a.defense) or two.clean(b.defense)
    shares = [
        (x, y) for of_a, x in _readings(a, clean) for of_b, y in _readings(b, clean) if of_a == of_b
    ]
    margin = _tolerance(a, b)
    return bool(shares) and all(abs(float(x - y)) > margin for x, y in shares)


def _readings(
    figure: PublishedFigure, clean: PublishedFigure | None
) -> Iterator[tuple[str, Fraction]]:
    """The accuracy over all examples and over the correct ones, as far as they are known."""
    value = figure.accuracy.value
    base = None if clean is None or clean.accuracy.value == 0 else clean.accuracy.value
    if figure.of in ("", "all"):
        yield "all", value
    if figure.of in ("", "correct"):
        yield "correct", value
    if figure.of == "correct" and base is not None:
        yield "all", value * base
    if figure.of == "all" and base is not None:
        yield "correct", value / base


def denominator_is_not_stated(tables: Sequence[PublishedTable]) -> Iterator[Comparison]:
    """Every figure states its number of examples, and whether it is of all or of the correct."""
    for table in tables:
        figures = list(_attacked(table))
        without_n = sum(figure.n is None for figure in figures)
        unclear = sum(not figure.of for figure in figures)
        yield (
            bool(without_n or unclear),
            f"{table.name}: of {len(figures)} figures {without_n} state no number of examples, and "
            f"{unclear} do not say whether they are of all examples or of the correct ones.",
        )


def _attacked(table: PublishedTable) -> Iterator[PublishedFigure]:
    return (figure for figure in table.figures if not figure.is_clean)


def _groups(table: PublishedTable, *, by_radius: bool) -> Iterable[list[PublishedFigure]]:
    """Attacked figures of the same defense, norm and denominator, and of the same radius."""
    groups: dict[Group, list[PublishedFigure]] = {}
    for figure in _attacked(table):
        radius = figure.eps if by_radius else None
        key = (figure.defense, figure.norm, figure.of, radius)
        groups.setdefault(key, []).append(figure)
    return groups.values()


def _key(figure: PublishedFigure) -> tuple[object, ...]:
    attack = "clean" if figure.is_clean else figure.attack.lower()
    return figure.defense, attack, figure.norm, figure.eps, figure.restarts


def _clean_share(table: PublishedTable, figure: PublishedFigure) -> Fraction | None:
    """The accuracy without an attack over the figure's own denominator."""
    if figure.of == "correct":
        return Fraction(1)
    clean = table.clean(figure.defense)
    return clean.accuracy.value if clean else None


def _is_less(one: PublishedFigure, two: PublishedFigure) -> bool:
    """Whether the first accuracy is below the second by more than chance and rounding."""
    return float(two.accuracy.value - one.accuracy.value) > _tolerance(one, two)


def _tolerance(one: PublishedFigure, two: PublishedFigure) -> float:
    rounding = float(one.accuracy.unit + two.accuracy.unit) / 2
    if not one.n or not two.n:
        return UNSTATED_TOLERANCE + rounding
    shares = ((float(f.accuracy.value), n) for f, n in ((one, one.n), (two, two.n)))
    return 2 * math.sqrt(sum(p * (1 - p) / n for p, n in shares)) + rounding


def _exceeds(one: PrintedShare, two: PrintedShare) -> bool:
    """Whether a share is larger than another on the same examples, whatever was rounded."""
    return one.value - two.value > max(one.unit, two.unit)


def _percent(figure: PublishedFigure) -> str:
    decimals = max(0, round(-math.log10(100 * figure.accuracy.unit)))
    return f"{100 * float(figure.accuracy.value):.{decimals}f} %"


CHECKS_OF_TABLES = (
    one_step_leaves_less,
    accuracy_rises_with_radius,
    tiny_radius_has_a_large_effect,
    more_effort_is_weaker,
    union_exceeds_a_member,
    robust_exceeds_clean,
    count_and_percentage_differ,
    count_in_the_text_differs,
    tables_contradict,
    denominator_is_not_stated,
)

"""Tables of a comparison of defenses as HTML, from its record."""

from __future__ import annotations

from bench.core.statistics import PairedDifference
from bench.results.comparison import EntryComparison, PairComparison
from leaderboard import markup, words
from leaderboard.markup import Column, Html

LISTED_EXAMPLES = 24
"""Examples of one side of a pair that are listed."""


def pairs_table(found: EntryComparison) -> Html:
    """Every pair: examples robust for both, for one alone, the difference and its test."""
    columns = (
        Column("A", kind="name"),
        Column("B", kind="name"),
        Column("Both", "examples that are robust for both", "right"),
        Column("Only A", "examples that are robust for A alone", "right"),
        Column("Only B", "examples that are robust for B alone", "right"),
        Column("Neither", "examples that are robust for neither", "right"),
        Column("A minus B", words.DIFFERENCE_MEANS, "right"),
        Column("p, corrected", "exact McNemar test, corrected after Holm", "right"),
        Column("Better"),
    )
    return markup.html_table(columns, [_pair(pair) for pair in found.pairs])


def _pair(pair: PairComparison) -> tuple[Html, ...]:
    only_a, only_b = len(pair.only_a), len(pair.only_b)
    counts = (pair.both, only_a, only_b, pair.n - pair.both - only_a - only_b)
    tied = markup.chip("tied", "quiet", "the test does not tell them apart")
    better = markup.chip(pair.winner, "good") if pair.winner else tied
    return (
        markup.tag("b", markup.text(pair.a)),
        markup.tag("b", markup.text(pair.b)),
        *map(markup.text, counts),
        markup.text(difference_text(pair.difference)),
        markup.text(f"{pair.adjusted:.2g}"),
        better,
    )


def difference_text(found: PairedDifference) -> str:
    """A difference of shares in points with its interval.

    >>> difference_text(PairedDifference(0.1, 0.038, 0.1))
    '+10.0 (+3.8 to +10.0)'
    """
    value, low, high = (f"{100 * part:+.1f}" for part in found)
    return f"{value} ({low} to {high})"


def attacks_table(found: EntryComparison) -> Html:
    """The accuracy of each defense on clean images, over all common attacks and under each."""
    columns = (Column("", kind="name"), *(Column(name, kind="figure") for name in found.defenses))
    rows = [
        ("clean images", found.clean, "clean"),
        ("worst case over these attacks", found.robust, "robust"),
        *zip(found.attacks, found.by_attack, ["robust"] * len(found.attacks), strict=True),
    ]
    lines = [
        (markup.tag("b", markup.text(name)), *(markup.bar(count, kind) for count in counts))
        for name, counts, kind in rows
    ]
    return markup.html_table(columns, lines)


def examples_table(found: EntryComparison) -> Html:
    """The first examples for which only one of a pair is robust, with their true classes."""
    columns = (
        Column("Robust for", kind="name"), Column("Broken for", kind="name"),
        Column("Examples", kind="right"), Column("Number: true class", kind="words"),
    )  # fmt: skip
    rows = []
    for pair in found.pairs:
        for robust, broken, only in ((pair.a, pair.b, pair.only_a), (pair.b, pair.a, pair.only_b)):
            named = [f"{at}: {found.classes[found.labels[at]]}" for at in only[:LISTED_EXAMPLES]]
            more = f" and {len(only) - len(named)} more" if len(only) > len(named) else ""
            listed = ", ".join(named) + more if named else "none"
            texts = (robust, broken, len(only))
            rows.append((*map(markup.text, texts), markup.reason(listed)))
    return markup.html_table(columns, rows)

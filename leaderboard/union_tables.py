"""The score over several perturbation sets as HTML."""

from __future__ import annotations

from bench.results.set_unions import HEADINGS, SCORED_SETS, SetUnion, UnionRow
from leaderboard import markup, notices, words
from leaderboard.markup import Column, Html

UNION_CAPTION = (
    "Union: an example is robust where no attack in any of the sets broke it. Average: the mean"
    " over the sets. Both count the examples that were evaluated in every set of the row, and"
    " nothing is ranked by them; corruptions are not adversarial."
)
UNION_COLUMNS = (
    Column("Defense", kind="name"),
    Column("Union ↑", "robust in every set of the row", "figure"),
    Column("Average ↑", "mean over the sets of the row, with its 95 % interval", "right"),
    *(Column(f"{heading} ↑", "on the examples that all sets share", "figure")
      for heading in HEADINGS),
    Column("Clean ↑", kind="figure"),
    Column("Not told apart from", "by exact paired tests of the union, as one family", "words"),
    Column("Note", "sets without a result, and open required attacks", "words"),
)  # fmt: skip


def no_union(message: str) -> notices.Notice:
    """The notice for a data set with results in fewer than two sets."""
    commands = ("bench run --threat digits-linf --threat digits-l2",)
    return notices.Notice("Fewer than two sets", (words.as_sentence(message),), commands)


def union_score_table(found: SetUnion) -> Html:
    """The rows of the score; each links to the page of its defense."""
    return markup.html_table(UNION_COLUMNS, [_cells(row) for row in found.rows])


def _cells(row: UnionRow) -> tuple[Html, ...]:
    figures = (row.sets.get(name) for name in SCORED_SETS)
    low, high = row.interval
    return (
        markup.link("defense", markup.text(row.defense), name=row.defense),
        markup.bar(row.union),
        markup.join(
            (markup.text(f"{100 * row.average:.1f} %"),
             markup.small(f"{100 * low:.1f}–{100 * high:.1f} %")),  # noqa: RUF001
            "<br>",
        ),
        *(markup.bar(figure.robust if figure else None) for figure in figures),
        markup.bar(row.clean, "clean"),
        markup.reason(", ".join(map(words.plain_text, row.tied)) or "—"),
        markup.text(row.note or "—"),
    )  # fmt: skip

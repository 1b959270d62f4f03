"""Submissions and cells in play as tables: records in, HTML out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from bench.core.cells import CellState
from bench.store import CellRow, SubmissionRow
from leaderboard import markup, words
from leaderboard.markup import Column, Html

STALLED = 180.0
"""Seconds without a sign of life after which a running cell is called stalled."""

STEP_KIND = {"rejected": "bad", "failed": "bad", "finished": "good", "running": "warn"}


def moment(at: float) -> str:
    """A time that means the same everywhere."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def ago(at: float, now: float) -> str:
    """How long ago, in words."""
    return f"{words.seconds(max(0.0, now - at))} ago"


def submissions(entries: Sequence[SubmissionRow], now: float) -> Html:
    """Where every submission stands, and how it came there."""
    columns = (
        Column("Submission", kind="name"),
        Column("State"),
        Column("Since", "time of the last change"),
        Column("Reason", "why it was rejected or failed", "words"),
        Column("History", "every state it has been in", "words"),
    )
    return markup.table(columns, [_submission(entry, now) for entry in entries])


def _submission(entry: SubmissionRow, now: float) -> list[Html]:
    since = (markup.text(moment(entry.at)), markup.small(ago(entry.at, now)))
    history = (f"{s.state} {datetime.fromtimestamp(s.at, UTC):%H:%M}" for s in entry.history)
    return [
        markup.tag("b", markup.text(entry.name)),
        markup.chip(entry.state, STEP_KIND.get(entry.state, "plain")),
        markup.tag("span", markup.join(since, "<br>"), class_="g-line"),
        markup.why(entry.reason or "—"),
        markup.small(" → ".join(history)),
    ]


def running(cells: Iterable[CellRow], now: float) -> Html:
    """Cells in play; one without a sign of life is stalled, never `running`."""
    columns = (
        Column("Cell", kind="name"), Column("Threat model"), Column("State"),
        Column("Judged", "examples that have their verdict", "right"),
        Column("Last sign of life"), Column("Worker", kind="code"),
    )  # fmt: skip
    rows = []
    for cell in cells:
        late = now - cell.updated > STALLED
        rows.append(
            (
                markup.text(f"{cell.cell.attack} → {cell.cell.defense}"),
                markup.text(cell.cell.threat or "clean pass"),
                markup.chip("stalled" if late else "running", "bad" if late else "warn"),
                markup.text(f"{cell.items_done}/{cell.cell.items}"),
                markup.text(ago(cell.updated, now)),
                markup.text(cell.owner),
            )
        )
    return markup.table(columns, rows)


def failed(cells: Iterable[CellRow]) -> Html:
    """Cells without a figure, who must act, and why."""
    columns = (
        Column("Cell", kind="name"), Column("Threat model"),
        Column("Who must act"), Column("Reason", kind="words"), Column("When"),
    )  # fmt: skip
    rows = [
        (
            markup.text(f"{cell.cell.attack} → {cell.cell.defense}"),
            markup.text(cell.cell.threat or "clean pass"),
            markup.chip(str(cell.culprit or "unknown"), "bad"),
            markup.why(cell.reason),
            markup.text(moment(cell.updated)),
        )
        for cell in cells
    ]
    return markup.table(columns, rows)


def progress(cells: Sequence[CellRow]) -> Html:
    """Headline counts of the cells by state."""
    counts = {state: sum(cell.state == state for cell in cells) for state in CellState}
    return markup.tiles(
        (state.capitalize(), str(counts[state]), words.STATE_MEANS[state]) for state in CellState
    )

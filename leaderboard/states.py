"""Tables of submissions and unfinished cells as HTML, from records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from bench.core.cells import CellState
from bench.store import CellRow, SubmissionRow
from leaderboard import markup, words
from leaderboard.markup import Column, Html

STALLED_AFTER = 180.0
"""Seconds without an update after which a running cell is shown as stalled."""

SUBMISSION_STATE_KIND = {"rejected": "bad", "failed": "bad", "finished": "good", "running": "warn"}


def utc_time(at: float) -> str:
    """A time stamp in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def time_ago(at: float, now: float) -> str:
    """The time since then: `5.0 s ago`."""
    return f"{words.format_seconds(max(0.0, now - at))} ago"


def submissions_table(entries: Sequence[SubmissionRow], now: float) -> Html:
    """Every submission with its state and history."""
    columns = (
        Column("Submission", kind="name"),
        Column("State"),
        Column("Since", "time of the last change"),
        Column("Reason", "why it was rejected or failed", "words"),
        Column("History", "all its states", "words"),
    )
    return markup.html_table(columns, [_submission(entry, now) for entry in entries])


def _submission(entry: SubmissionRow, now: float) -> list[Html]:
    since = (markup.text(utc_time(entry.at)), markup.small(time_ago(entry.at, now)))
    history = (f"{s.state} {datetime.fromtimestamp(s.at, UTC):%H:%M}" for s in entry.history)
    return [
        markup.tag("b", markup.text(entry.name)),
        markup.chip(entry.state, SUBMISSION_STATE_KIND.get(entry.state, "plain")),
        markup.tag("span", markup.join(since, "<br>"), class_="g-line"),
        markup.reason(entry.reason or "—"),
        markup.small(" → ".join(history)),
    ]


RUNNING_COLUMNS = (
    Column("Cell", kind="name"), Column("Threat model"), Column("State"),
    Column("Verified", "examples with a verified outcome", "right"),
    Column("Last update"), Column("Worker", kind="code"),
)  # fmt: skip


def running_table(cells: Iterable[CellRow], now: float) -> Html:
    """Running cells; one without a recent update is stalled."""
    rows = []
    for cell in cells:
        late = now - cell.updated > STALLED_AFTER
        rows.append(
            (
                markup.text(f"{cell.cell.attack} → {cell.cell.defense}"),
                markup.text(cell.cell.threat or "clean pass"),
                markup.chip("stalled" if late else "running", "bad" if late else "warn"),
                markup.text(f"{cell.items_done}/{cell.cell.items}"),
                markup.text(time_ago(cell.updated, now)),
                markup.text(cell.owner),
            )
        )
    return markup.html_table(RUNNING_COLUMNS, rows)


def failed_table(cells: Iterable[CellRow]) -> Html:
    """Failed cells with cause and reason."""
    columns = (
        Column("Cell", kind="name"), Column("Threat model"),
        Column("Caused by"), Column("Reason", kind="words"), Column("When"),
    )  # fmt: skip
    rows = [
        (
            markup.text(f"{cell.cell.attack} → {cell.cell.defense}"),
            markup.text(cell.cell.threat or "clean pass"),
            markup.chip(str(cell.culprit or "unknown"), "bad"),
            markup.reason(cell.reason),
            markup.text(utc_time(cell.updated)),
        )
        for cell in cells
    ]
    return markup.html_table(columns, rows)


def state_tiles(cells: Sequence[CellRow]) -> Html:
    """Number of cells in each state."""
    counts = Counter(cell.state for cell in cells)
    means = words.STATE_EXPLANATIONS
    return markup.figure_tiles((s.capitalize(), str(counts[s]), means[s]) for s in CellState)

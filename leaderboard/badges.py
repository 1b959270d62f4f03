"""The badge of a row as an SVG image, and the newest results as an Atom feed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode
from xml.sax.saxutils import escape, quoteattr

from bench.core.cells import CLEAN, CellState
from bench.results.leaderboards import Leaderboard
from bench.results.ranking import RankingRow
from bench.store import CellRow
from leaderboard import words

SIGN_WIDTH = 6.6
"""Points that one sign of the badge takes, at 11 points in a sans-serif font."""
PADDING = 8
COLOURS = {"sound": "#176b66", "suspect": "#8a5a00", "invalid": "#a02335", "": "#4a5560"}
"""Verdict of a row -> background of its figure; white text on each has a contrast above 4.5."""
FEED_ENTRIES = 50
"""Entries of the feed."""


def newest_of_defense(
    cells: Iterable[CellRow], leaderboard: Leaderboard, defense: str
) -> float | None:
    """Unix time of the newest finished cell of a defense on a leaderboard; None without one."""
    times = [
        row.updated
        for row in cells
        if row.state == CellState.DONE
        and (row.cell.threat_id, row.cell.defense) == (leaderboard.id, defense)
    ]
    return max(times, default=None)


def badge_text(row: RankingRow, at: float | None) -> str:
    """The right side of a badge: figure, interval, verdict where it is not sound, date.

    The figure is the one that decides ranks; a row without a rank says so.
    """
    figure = row.robust_ranked
    if row.rank is None or not figure.n:
        return f"not ranked · {words.day(at)}"
    low, high = (100 * edge for edge in (figure.low, figure.high))
    shown = f"{words.format_count(figure)} ({low:.1f} to {high:.1f})"
    warning = f" · {row.verdict}" if row.verdict != "sound" else ""
    return f"{shown}{warning} · {words.day(at)}"


def badge(row: RankingRow, label: str, at: float | None) -> str:
    """A badge: the threat model on the left, the figure of a defense on the right."""
    left, right = words.plain_text(f"robust, {label}", 60), badge_text(row, at)
    widths = [round(len(side) * SIGN_WIDTH + 2 * PADDING) for side in (left, right)]
    total, title = sum(widths), f"{words.plain_text(row.defense)}: {left}: {right}"
    colour = COLOURS[row.verdict if row.rank else ""]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="20" role="img"'
        f" aria-label={quoteattr(title)}><title>{escape(title)}</title>"
        f'<rect width="{widths[0]}" height="20" fill="#333b44"/>'
        f'<rect x="{widths[0]}" width="{widths[1]}" height="20" fill="{colour}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{PADDING}" y="14">{escape(left)}</text>'
        f'<text x="{widths[0] + PADDING}" y="14">{escape(right)}</text></g></svg>\n'
    )


def feed(known: Mapping[str, Leaderboard], cells: Iterable[CellRow], base: str) -> str:
    """An Atom feed of the defenses whose results changed last; `base` is the site's address.

    `known` are the leaderboards by label.
    """
    boards = {(board.id, board.examples, board.mode): label for label, board in known.items()}
    newest: dict[tuple[str, str], float] = {}
    for row in cells:
        cell = row.cell
        label = boards.get((cell.threat_id, cell.examples, cell.mode))
        if label is not None and row.state == CellState.DONE and cell.attack != CLEAN:
            pair = (label, cell.defense)
            newest[pair] = max(newest.get(pair, 0.0), row.updated)
    latest = sorted(newest.items(), key=lambda one: (-one[1], one[0]))[:FEED_ENTRIES]
    entries = "".join(_entry(label, name, at, base) for (label, name), at in latest)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom">'
        f"<title>{words.PRODUCT}: new results</title><id>{escape(base)}/api/v1/feed.xml</id>"
        f"<updated>{_moment(latest[0][1] if latest else 0.0)}</updated>"
        f'<link rel="self" href={quoteattr(base + "/api/v1/feed.xml")}/>{entries}</feed>\n'
    )


def _entry(label: str, name: str, at: float, base: str) -> str:
    address = f"{base}/defense?{urlencode({'name': name, 'threat': label})}"
    title = f"{words.plain_text(name)} under {words.plain_text(label)}"
    return (
        f"<entry><title>{escape(title)}</title><id>{escape(address)}#{at:.0f}</id>"
        f"<updated>{_moment(at)}</updated><link href={quoteattr(address)}/></entry>"
    )


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"

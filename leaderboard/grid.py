"""The matrix as an HTML table of coloured cells, for many columns and narrow screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard import markup
from leaderboard.markup import NOTHING, Html

VIRIDIS_STOPS = (
    (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140),
    (40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37),
)  # fmt: skip
"""The viridis colour map at nine evenly spaced positions."""

BLACK_ABOVE = 0.432
"""Black text above this position of the colour map and white text below have a contrast of 4.6."""


def viridis(share: float) -> tuple[int, int, int]:
    """The colour (red, green, blue) of a value in [0, 1] on the viridis colour map."""
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS_STOPS) - 1)
    low = min(int(place), len(VIRIDIS_STOPS) - 2)
    part = place - low
    red, green, blue = (
        round(a + part * (b - a))
        for a, b in zip(VIRIDIS_STOPS[low], VIRIDIS_STOPS[low + 1], strict=True)
    )
    return red, green, blue


def matrix_table(
    tiles: Sequence[Mapping[str, Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    top: float,
    warnings: Mapping[str, str] | None = None,
) -> Html:
    """The matrix, one line per defense; tiles as for `charts.matrix_chart`.

    `warnings` mark the columns of attacks with a sentence.
    """
    marks = warnings or {}
    by = {(tile["defense"], tile["attack"]): tile for tile in tiles}
    head = markup.join(_head(name, marks.get(name, "")) for name in ("", *columns))
    lines = []
    for name in rows:
        cells = markup.join(_cell(by.get((name, column)), top) for column in columns)
        leader = markup.tag("th", markup.text(name), scope="row", class_="g-name")
        lines.append(markup.tag("tr", Html(leader + cells)))
    inside = markup.tag("thead", markup.tag("tr", head)) + markup.tag("tbody", markup.join(lines))
    table = markup.tag("table", Html(inside), class_="g-table g-grid")
    return markup.tag("div", table, class_="g-scroll", tabindex="0")


def _head(name: str, warning: str = "") -> Html:
    """A column heading with vertical text, so that columns are narrow."""
    shown, title = (f"▲ {name}", f"{name}: {warning}") if warning else (name, name)
    return markup.tag("th", markup.tag("span", markup.text(shown), title=title), scope="col")


def _cell(tile: Mapping[str, Any] | None, top: float) -> Html:
    if tile is None:
        return markup.tag("td", NOTHING)
    title = f"{tile['defense']}, {tile['attack']}: {tile['words']}"
    if tile["value"] is None:
        return markup.tag("td", markup.small(tile["shown"]), title=title)
    share = tile["value"] / (top or 1)
    ink = "#000000" if share > BLACK_ABOVE else "#ffffff"
    style = f"background:rgb{viridis(share)};color:{ink}"
    return markup.tag("td", markup.text(tile["shown"]), title=title, style=style)

"""Altair charts from rows of plain values.

Every symbol has a label, and every coloured cell has a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import altair as alt

from bench.core.visible_text import visible_text
from leaderboard.grid import BLACK_ABOVE

Row: TypeAlias = Mapping[str, Any]
Chart: TypeAlias = alt.LayerChart | alt.FacetChart

COLOUR_SCALE: Literal["viridis"] = "viridis"
Theme: TypeAlias = Literal["light", "dark"]
GREY = "#8795a1"
TEXT_GREYS = {"light": "#55606b", "dark": "#aab4bd"}
"""Grey of texts in charts by theme: a contrast above 6 on its background."""
"""Grey that is readable on a light and on a dark page."""
ROBUST_COLOUR = "#21918c"
CLEAN_COLOUR = "#8795a1"
STEPS_CAPTION = (
    "Robust accuracy after so many steps of each attack, those of earlier restarts included. The"
    " dot is the last success, or the end of the first restart where that is later. A line that"
    " still falls at the end of a single restart was stopped too early; with several restarts the"
    " dot does not show when they ended."
)
"""Caption of the chart of robust accuracy vs iterations."""
STEP_TICKS = [0, *(m * 10**e for e in range(6) for m in (1, 2, 5))]
"""Ticks of the logarithmic axis of steps."""
MAX_CHART_COLUMNS = 10
"""Columns up to which the matrix is a chart; with more it is a table, which scrolls."""
MAX_LEVEL_LETTERS = 110
"""Letters of all column names up to which the names above the matrix are horizontal."""
LEGEND_COLUMNS = 3
"""Columns of the legend under a chart."""
PLOT_HEIGHT, LEGEND_LINE_HEIGHT = 300, 30
"""Height of a plot and of each line of its legend, in points."""
CLAIM_COLOUR = "#d1495b"
CERTIFIED_COLOUR = "#8a6fd1"
PERCENT_AXIS = alt.Axis(format="%", tickCount=6)
SHARE_SCALE = alt.Scale(domain=[0, 1], nice=False)


def with_description(chart: Chart, sentence: str) -> Chart:
    """The chart with a description for screen readers."""
    return chart.properties(description=sentence)


def _data(rows: Sequence[Row]) -> alt.InlineData:
    return alt.InlineData(
        [{field: _visible(value) for field, value in row.items()} for row in rows]
    )


def _visible(value: object) -> object:
    """A value of a chart: a text without hidden characters."""
    return visible_text(value) if isinstance(value, str) else value


def _names(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(visible_text(str(row[field])) for row in rows))


INTERVAL_MARKS = {
    "robust": ("circle", ROBUST_COLOUR),
    "clean": ("circle", CLEAN_COLOUR),
    "claimed": ("diamond", CLAIM_COLOUR),
    "certified": ("triangle-right", CERTIFIED_COLOUR),
}


def forest_chart(rows: Sequence[Row]) -> Chart:
    """Accuracies with intervals, one line per defense.

    Rows: defense, what (a key of `INTERVAL_MARKS`), value, low, high, words.
    """
    order = _names(rows, "defense")
    kinds = [what for what in INTERVAL_MARKS if any(row["what"] == what for row in rows)]
    colour = alt.Color(
        "what:N",
        scale=alt.Scale(domain=kinds, range=[INTERVAL_MARKS[what][1] for what in kinds]),
        legend=alt.Legend(title=None, orient="top", symbolSize=110),
    )
    shape = alt.Shape(
        "what:N", scale=alt.Scale(domain=kinds, range=[INTERVAL_MARKS[what][0] for what in kinds])
    )
    lines = alt.Y("defense:N", sort=order, title=None, axis=_labels())
    base = alt.Chart(_data(rows)).encode(y=lines, color=colour)
    whiskers = base.mark_rule(strokeWidth=2, opacity=0.75).encode(
        x=alt.X("low:Q", title="accuracy", axis=PERCENT_AXIS, scale=SHARE_SCALE),
        x2="high:Q",
    )
    points = base.mark_point(filled=True, size=95, opacity=1).encode(
        x="value:Q",
        shape=shape,
        tooltip=[
            alt.Tooltip("defense:N", title="defense"),
            alt.Tooltip("what:N", title="figure"),
            alt.Tooltip("words:N", title="value"),
        ],
    )
    return alt.layer(whiskers, points).properties(height=alt.Step(30))


def _labels(limit: int = 220, *, grid: bool = True) -> alt.Axis:
    return alt.Axis(
        labelLimit=limit,
        labelFontSize=13,
        labelFlush=False,
        labelOverlap=False,
        grid=grid,
        gridOpacity=0.35,
        domain=False,
        ticks=False,
    )


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row exceeds in both clean and robust accuracy, best clean first."""
    best = list[Row]()
    for row in sorted(rows, key=lambda r: (-r["clean"], -r["robust"], str(r["defense"]))):
        if not best or row["robust"] > best[-1]["robust"]:
            best.append(row)
    return best


def trade_off_chart(rows: Sequence[Row], theme: Theme = "light") -> Chart:
    """Clean and robust accuracy. Rows: defense, clean, robust, name_at, standing, words.

    `name_at` is the height of the name, which overlaps no other.
    """
    least = min((row["clean"] for row in rows), default=0.0)
    left = max(0.0, math.floor(10 * least - 1) / 10)
    x = alt.X("clean:Q", title="clean accuracy", axis=PERCENT_AXIS,
              scale=alt.Scale(domain=[left, 1], nice=False))  # fmt: skip
    y = alt.Y("robust:Q", title="robust accuracy", axis=PERCENT_AXIS, scale=SHARE_SCALE)
    equal = (
        alt.Chart(_data([{"clean": left, "robust": left}, {"clean": 1, "robust": 1}]))
        .mark_line(strokeDash=[4, 4], color=GREY, opacity=0.7)
        .encode(x=x, y=y)
    )
    best = (
        alt.Chart(_data(pareto_front([row for row in rows if row["standing"] == "ranked"])))
        .mark_line(interpolate="step-before", color=ROBUST_COLOUR, opacity=0.45, strokeWidth=2)
        .encode(x=x, y=y, order=alt.Order("clean:Q"))
    )
    base = alt.Chart(_data(rows)).encode(x=x, y=y)
    points = base.mark_point(filled=True, size=110, opacity=0.95).encode(
        shape=alt.Shape(
            "standing:N",
            scale=alt.Scale(domain=["ranked", "not ranked"], range=["circle", "cross"]),
            legend=alt.Legend(title=None, orient="top"),
        ),
        color=alt.Color(
            "standing:N",
            scale=alt.Scale(domain=["ranked", "not ranked"], range=[ROBUST_COLOUR, CLAIM_COLOUR]),
        ),
        tooltip=[
            alt.Tooltip("defense:N", title="defense"),
            alt.Tooltip("words:N", title="clean, robust"),
        ],
    )
    names = base.mark_text(
        align="right", dx=-10, fontSize=12, limit=150, color=TEXT_GREYS[theme]
    ).encode(y=alt.Y("name_at:Q", scale=SHARE_SCALE), text="defense:N")
    return alt.layer(equal, best, points, names).properties(height=380)


def matrix_chart(
    cells: Sequence[Row],
    rows: Sequence[str],
    columns: Sequence[str],
    metric: str,
    top: float,
    theme: Theme = "light",
) -> Chart:
    """The matrix. Cells: defense, attack, state, value (None: no result), shown, words."""
    level = len(columns) * max(map(len, columns), default=0) <= MAX_LEVEL_LETTERS
    x = alt.X(
        "attack:N",
        sort=[visible_text(name) for name in columns],
        title=None,
        scale=alt.Scale(paddingInner=0.03, paddingOuter=0),
        axis=alt.Axis(
            orient="top", labelAngle=0 if level else -35, labelLimit=180,
            domain=False, ticks=False, labelFontSize=13, labelOverlap=False, labelFlush=False,
        ),
    )  # fmt: skip
    names = [visible_text(name) for name in rows]
    y = alt.Y("defense:N", sort=names, title=None, axis=_labels(grid=False),
              scale=alt.Scale(paddingInner=0.07, paddingOuter=0))  # fmt: skip
    tips = [
        alt.Tooltip("defense:N", title="defense"),
        alt.Tooltip("attack:N", title="attack"),
        alt.Tooltip("state:N", title="state"),
        alt.Tooltip("words:N", title=metric),
    ]
    base = alt.Chart(_data(cells)).encode(x=x, y=y, tooltip=tips)
    known = "isValid(datum.value)"
    tiles = (
        base.transform_filter(known)
        .mark_rect(cornerRadius=3)
        .encode(
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(scheme=COLOUR_SCALE, domain=[0, top or 1]),
                legend=alt.Legend(title=None, orient="bottom", gradientLength=260,
                                  format="%" if top == 1 else "~s"),
            )
        )
    )  # fmt: skip
    holes = base.transform_filter(f"!{known}").mark_rect(
        cornerRadius=3, fill=GREY, fillOpacity=0.14, stroke=GREY, strokeDash=[3, 3],
        strokeOpacity=0.6,
    )  # fmt: skip
    figures = base.transform_filter(known).mark_text(fontSize=13, fontWeight=600).encode(
        text="shown:N",
        color=alt.condition(
            alt.datum.value > BLACK_ABOVE * (top or 1), alt.value("#000000"), alt.value("#ffffff")
        ),
    )  # fmt: skip
    states = base.transform_filter(f"!{known}").mark_text(
        fontSize=11, fontStyle="italic", color=TEXT_GREYS[theme]
    ).encode(text="shown:N")  # fmt: skip
    return alt.layer(holes, tiles, figures, states).properties(height=alt.Step(36))


def steps_chart(rows: Sequence[Row], axis: str) -> Chart:
    """Robust accuracy vs iterations. Rows: attack, step, accuracy, words, end (is it the last)."""
    base = alt.Chart(_data(rows)).encode(
        x=alt.X(
            "step:Q",
            title=axis,
            axis=alt.Axis(values=STEP_TICKS),
            scale=alt.Scale(type="symlog", nice=False),
        ),
        y=alt.Y("accuracy:Q", title="robust accuracy", axis=PERCENT_AXIS, scale=SHARE_SCALE),
        color=_series("attack", rows),
        tooltip=_point_tips("attack", axis, "step"),
    )
    lines = base.mark_line(interpolate="step-after", strokeWidth=2.2)
    ends = base.transform_filter("datum.end").mark_point(size=60, filled=True, opacity=1)
    return alt.layer(lines, ends).properties(height=_height("attack", rows))


def radius_chart(rows: Sequence[Row], axis: str, radius: float | None) -> Chart:
    """Robust accuracy vs radius. Rows: attack, kind, eps, accuracy, words.

    Rows of kind `smallest distance` form a line; one of kind `fixed radius` is a point.
    """
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("eps:Q", title=axis, scale=alt.Scale(zero=True, nice=False)),
        y=alt.Y("accuracy:Q", title="robust accuracy", axis=PERCENT_AXIS, scale=SHARE_SCALE),
        color=_series("attack", rows),
        tooltip=_point_tips("attack", axis, "eps"),
    )
    curve: Literal["step-after"] = "step-after"
    lines = base.transform_filter("datum.kind == 'smallest distance'").mark_line(
        interpolate=curve, strokeWidth=2.2
    )
    points = base.transform_filter("datum.kind == 'fixed radius'").mark_point(
        size=110, filled=True, shape="diamond"
    )
    layers: list[alt.Chart] = [lines, points]
    if radius is not None:
        layers.append(
            alt.Chart(_data([{"eps": radius}]))
            .mark_rule(strokeDash=[4, 4], color=GREY)
            .encode(x="eps:Q")
        )
    return alt.layer(*layers).properties(height=_height("attack", rows))


def roc_chart(rows: Sequence[Row]) -> Chart:
    """ROC curves of a detector, one per attack: rejection rates of clean and attacked images.

    Rows: attack, clean, attacked, words, here (at the threshold of the defense), at (order).
    """
    x = alt.X("clean:Q", title="clean images rejected", axis=PERCENT_AXIS, scale=SHARE_SCALE)
    y = alt.Y("attacked:Q", title="attacked images rejected", axis=PERCENT_AXIS, scale=SHARE_SCALE)
    ends = alt.Chart(_data([{"clean": 0, "attacked": 0}, {"clean": 1, "attacked": 1}]))
    chance = ends.mark_line(strokeDash=[4, 4], color=GREY, opacity=0.7).encode(x=x, y=y)
    tips = [
        alt.Tooltip("attack:N", title="attack"),
        alt.Tooltip("words:N", title="rejected, attacked at clean"),
    ]
    base = alt.Chart(_data(rows)).encode(x=x, y=y, color=_series("attack", rows), tooltip=tips)
    lines = base.transform_filter("!datum.here").mark_line(strokeWidth=2.2).encode(
        order=alt.Order("at:Q")
    )  # fmt: skip
    points = base.transform_filter("datum.here").mark_point(size=90, filled=True, opacity=1)
    return alt.layer(chance, lines, points).properties(height=_height("attack", rows))


def _series(field: str, rows: Sequence[Row]) -> alt.Color:
    return alt.Color(
        f"{field}:N",
        sort=_names(rows, field),
        legend=alt.Legend(title=None, orient="bottom", labelLimit=180, columns=LEGEND_COLUMNS),
    )


def _height(field: str, rows: Sequence[Row]) -> int:
    """Height of a plot with its legend."""
    return PLOT_HEIGHT + LEGEND_LINE_HEIGHT * -(-len(_names(rows, field)) // LEGEND_COLUMNS)


def _point_tips(field: str, axis: str, x: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip(f"{field}:N", title=field),
        alt.Tooltip(f"{x}:Q", title=axis),
        alt.Tooltip("words:N", title="robust accuracy"),
    ]

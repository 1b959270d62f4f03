"""Rows of the charts, from the records of a leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bench.core.cards import AttackCard
from bench.core.statistics import Count
from bench.results.defense_report import AccuracyCurve, RadiusPoint
from bench.results.detection import DetectorRoc
from bench.results.leaderboards import Leaderboard
from bench.results.matrix import MatrixCell
from bench.results.measures import seconds_text
from bench.results.ranking import RankingRow
from leaderboard import words

ChartRow: TypeAlias = dict[str, Any]

ACCURACY_NAME = "robust accuracy"
MARGIN_COLUMNS = ("clean", "all attacks")
"""Columns of the matrix that are no attack."""
NOT_EVALUATED = ("missing", "skipped", "not applicable")
"""States of a cell that has not been evaluated."""
MAX_POINTS = 160
"""Points of a curve that are drawn; more cannot be distinguished on a screen."""


class CellMetric(NamedTuple):
    """A figure of a cell that the matrix can show."""

    explanation: str
    value: Callable[[MatrixCell], float | None]
    """None where the cell has no such figure."""
    format: Callable[[MatrixCell, float], str]
    share: bool = False
    """Whether it is a share of the examples, comparable with clean and worst-case accuracy."""


def _each(name: str) -> Callable[[MatrixCell], float | None]:
    def value(cell: MatrixCell) -> float | None:
        total: int | float | None = getattr(cell, name)
        return None if cell.state != "done" or total is None else total / max(cell.items, 1)

    return value


def _total(name: str) -> Callable[[MatrixCell], float | None]:
    def value(cell: MatrixCell) -> float | None:
        total: int | None = getattr(cell, name)
        return None if total is None else float(total)

    return value


def _accuracy(cell: MatrixCell) -> float | None:
    return cell.robust.k / cell.robust.n if cell.robust and cell.robust.n else None


def _number(cell: MatrixCell, value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


FULL_MODE_METRICS: Mapping[str, CellMetric] = {
    ACCURACY_NAME: CellMetric(
        "Share of the examples that are classified correctly and that this attack did not break,"
        " in percent. Higher is better for the defense.",
        _accuracy,
        lambda cell, share: f"{100 * share:.1f}",
        share=True,
    ),
    "gradient evaluations per example": CellMetric(
        "Gradient evaluations up to the first success, averaged over the examples.",
        _each("gradients"),
        _number,
    ),
    "queries per example": CellMetric(
        "Forward passes, those of gradient evaluations included, averaged over the examples.",
        _each("forwards"),
        _number,
    ),
    "seconds per example": CellMetric(
        "CPU seconds, averaged over the examples.", _each("seconds"), lambda _, s: seconds_text(s)
    ),
    "refused candidates": CellMetric(
        "Examples whose candidate the referee refused: outside the set or [0, 1], not finite, or"
        " not adversarial.",
        lambda cell: None if cell.refusals is None else float(cell.refusals.total),
        _number,
    ),
    "fragile successes": CellMetric(
        "Broken examples whose margin is under 1e-4 of the logit scale.",
        _total("fragile"),
        _number,
    ),
}


SURVIVOR_ACCURACY = "robust of the examples met"


def _of_met(cell: MatrixCell, share: float) -> str:
    """`k of n`: in a cascade each attack has its own n."""
    return f"{cell.robust.k} of {cell.robust.n}" if cell.robust else ""


RANK_MODE_METRICS: Mapping[str, CellMetric] = {
    SURVIVOR_ACCURACY: CellMetric(
        "k of the n examples that no earlier attack broke, and that this attack did not break"
        " either. Attacks are in the order of the cascade.",
        _accuracy,
        _of_met,
        share=True,
    ),
    **{name: metric for name, metric in FULL_MODE_METRICS.items() if name != ACCURACY_NAME},
}


def cell_metrics(leaderboard: Leaderboard) -> Mapping[str, CellMetric]:
    """The figures of the cells of a leaderboard."""
    return RANK_MODE_METRICS if leaderboard.mode != "full" else FULL_MODE_METRICS


def matrix_tiles(cells: Iterable[MatrixCell], metric: CellMetric) -> list[ChartRow]:
    """The cells of the matrix, with a figure or a state."""
    return [_tile(cell, metric) for cell in cells]


def _tile(cell: MatrixCell, metric: CellMetric) -> ChartRow:
    value = metric.value(cell)
    without = _without(cell)
    text = words.format_interval(cell.robust) if value is not None else cell.reason or without
    return {
        "defense": cell.defense,
        "attack": cell.attack,
        "state": cell.state,
        "value": value,
        "shown": without if value is None else metric.format(cell, value),
        "words": text if metric.share or value is None else metric.format(cell, value),
    }


def _without(cell: MatrixCell) -> str:
    if cell.state == "running":
        return f"running {cell.items_done}/{cell.items}"
    if cell.state == "done":
        return "none left" if cell.robust is not None and not cell.robust.n else "—"
    return words.STATE_LABELS[cell.state]


def margin_tiles(rows: Iterable[RankingRow]) -> list[ChartRow]:
    """Clean accuracy and worst case over all attacks, as columns of the matrix."""
    found = []
    for row in rows:
        for column, count in zip(MARGIN_COLUMNS, (row.clean, row.robust), strict=True):
            share = count.k / count.n if count.n else None
            found.append(
                {
                    "defense": row.defense,
                    "attack": column,
                    "state": "done" if count.n else "missing",
                    "value": share,
                    "shown": "missing" if share is None else f"{100 * share:.1f}",
                    "words": words.format_interval(count),
                }
            )
    return found


def colour_limit(metric: CellMetric, drawn: Iterable[ChartRow]) -> float:
    """The upper end of the colour scale."""
    if metric.share:
        return 1.0
    return max((row["value"] for row in drawn if row["value"] is not None), default=1.0)


def attack_columns(leaderboard: Leaderboard, cells: Sequence[MatrixCell]) -> list[str]:
    """The attacks in the order of their columns: strongest first, or as in the cascade."""
    return cascade_order(cells) if leaderboard.mode != "full" else strongest_first(cells)


def evaluated_attacks(attacks: Sequence[str], cells: Iterable[MatrixCell]) -> list[str]:
    """The attacks that any defense was evaluated against; all of them where there is none."""
    played = {cell.attack for cell in cells if cell.state not in NOT_EVALUATED}
    return [attack for attack in attacks if attack in played] or list(attacks)


def left_out_note(attacks: Sequence[str], shown: Sequence[str]) -> str:
    """A sentence on attacks without a column; empty where all have one."""
    left = len(attacks) - len(shown)
    return f"Not shown: {words.plural(left, 'attack')} without a result." if left else ""


def cascade_order(cells: Sequence[MatrixCell]) -> list[str]:
    """Attacks in the order of a cascade, which the cells have."""
    return list(dict.fromkeys(cell.attack for cell in cells))


def strongest_first(cells: Sequence[MatrixCell]) -> list[str]:
    """Attacks by mean robust accuracy, the lowest first; those without a result last."""
    left: dict[str, list[float]] = {cell.attack: [] for cell in cells}
    for cell in cells:
        share = _accuracy(cell)
        if share is not None:
            left[cell.attack].append(share)
    return sorted(left, key=lambda name: (np.mean(left[name]) if left[name] else 2.0, name))


def interval_rows(rows: Iterable[RankingRow]) -> list[ChartRow]:
    """Clean, robust, claimed and certified accuracies with intervals."""
    drawn: list[ChartRow] = []
    for row in rows:
        drawn.append(_interval(row.defense, "clean", row.clean))
        drawn.append(_interval(row.defense, "robust", row.robust))
        if row.certified is not None:
            drawn.append(_interval(row.defense, "certified", row.certified.count))
        if row.claim is not None:
            claimed = row.claim.robust
            figures = {"value": claimed, "low": claimed, "high": claimed}
            text = f"{100 * claimed:.1f} %"
            drawn.append({"defense": row.defense, "what": "claimed", **figures, "words": text})
    return [point for point in drawn if point["value"] is not None]


def _interval(defense: str, what: str, count: Count) -> ChartRow:
    return {
        "defense": defense,
        "what": what,
        "value": count.k / count.n if count.n else None,
        "low": count.low,
        "high": count.high,
        "words": f"{words.format_count(count)} ({words.format_interval(count)})",
    }


def trade_off_rows(rows: Iterable[RankingRow]) -> list[ChartRow]:
    """Clean and robust accuracy, one point per defense, with a free height for its name."""
    points: list[ChartRow] = [
        {
            "defense": row.defense,
            "clean": row.clean.k / row.clean.n,
            "robust": row.robust.k / row.robust.n,
            "standing": "ranked" if row.rank else "not ranked",
            "words": f"{words.format_count(row.clean)}, {words.format_count(row.robust)}",
        }
        for row in rows
        if row.clean.n and row.robust.n
    ]
    heights = spread_heights([point["robust"] for point in points], 0.045)
    return [{**point, "name_at": at} for point, at in zip(points, heights, strict=True)]


def spread_heights(heights: Sequence[float], least: float) -> list[float]:
    """Heights raised so that any two differ by at least `least`."""
    lifted = [0.0] * len(heights)
    below = -least
    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        lifted[index] = below = max(heights[index], below + least)
    return lifted


def accuracy_rows(
    curves: Mapping[str, AccuracyCurve], attacks: Mapping[str, AttackCard] | None
) -> list[ChartRow]:
    """Robust accuracy vs steps or distance; with `attacks` each line extends to their steps."""
    drawn: list[ChartRow] = []
    for name, curve in curves.items():
        card = attacks.get(name) if attacks else None
        end = card.steps or 0 if card else 0
        for x, right in _corners(curve, float(end)):
            drawn.append(
                {
                    "attack": name,
                    "step": x,
                    "accuracy": right / curve.n,
                    "words": f"{100 * right / curve.n:.1f} %, {right}/{curve.n}",
                    "end": False,
                }
            )
        drawn[-1]["end"] = True
    return drawn


def _corners(curve: AccuracyCurve, end: float) -> list[tuple[float, int]]:
    """At most `MAX_POINTS` points with the first and the last, and a horizontal end."""
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, MAX_POINTS).astype(int))
    made = [(float(curve.x[i]), int(curve.correct[i])) for i in chosen]
    return [*made, (end, made[-1][1])] if end > made[-1][0] else made


def radius_rows(
    distances: Mapping[str, AccuracyCurve], points: Iterable[RadiusPoint]
) -> list[ChartRow]:
    """Curves of smallest distances, and one point per threat model of a fixed radius."""
    drawn = [
        {**row, "eps": row["step"], "kind": "smallest distance"}
        for row in accuracy_rows(distances, None)
    ]
    for point in points:
        note = "" if point.complete else ", provisional"
        drawn.append(_at_radius(point, "all attacks, fixed radius", point.robust, note))
        if point.certified is not None:
            by = f", {words.certificate_note(point.certified)}"
            drawn.append(_at_radius(point, "certified, fixed radius", point.certified.count, by))
    return drawn


def _at_radius(point: RadiusPoint, name: str, count: Count, note: str) -> ChartRow:
    """The upper bound by attacks, or the lower bound by certificates, at one radius."""
    return {
        "attack": name,
        "eps": point.radius,
        "accuracy": count.k / count.n,
        "kind": "fixed radius",
        "words": f"{words.format_count(count)} ({words.format_interval(count)}){note}",
    }


def roc_rows(curves: Mapping[str, DetectorRoc]) -> list[ChartRow]:
    """The points of each attack's ROC curve, and the one at the threshold of the defense."""
    drawn: list[ChartRow] = []
    for name, curve in curves.items():
        chosen = np.unique(np.linspace(0, len(curve.clean) - 1, MAX_POINTS).astype(int))
        corners = [(float(curve.clean[i]), float(curve.attacked[i])) for i in chosen]
        drawn += [_rejected(name, at, *corner, here=False) for at, corner in enumerate(corners)]
        drawn.append(_rejected(name, len(corners), *curve.at, here=True))
    return drawn


def _rejected(attack: str, at: int, clean: float, attacked: float, *, here: bool) -> ChartRow:
    rates = f"{100 * attacked:.1f} % at {100 * clean:.1f} %"
    return {
        "attack": attack, "at": at, "clean": clean, "attacked": attacked, "here": here,
        "words": f"{rates}, at its threshold" if here else rates,
    }  # fmt: skip

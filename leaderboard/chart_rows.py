"""From the board's records to the rows that a chart draws."""

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
from bench.results.ranking import RankingRow
from leaderboard import words

ChartRow: TypeAlias = dict[str, Any]

ACCURACY_NAME = "robust accuracy"
MARGIN_COLUMNS = ("clean", "all attacks")
"""Columns of the matrix that belong to no attack."""
NOT_EVALUATED = ("missing", "skipped", "not applicable")
"""States of a cell that nobody has played."""
MAX_POINTS = 160
"""Corners of a staircase that are drawn; more cannot be told apart on a screen."""


class CellMetric(NamedTuple):
    """A figure of a cell that the matrix can show."""

    means: str
    value: Callable[[MatrixCell], float | None]
    """None where the cell has no such figure."""
    shown: Callable[[MatrixCell, float], str]
    share: bool = False
    """Is it a share of the examples, so that clean and worst case may stand beside it?"""


def _each(name: str) -> Callable[[MatrixCell], float | None]:
    def value(square: MatrixCell) -> float | None:
        total: int | float | None = getattr(square, name)
        return None if square.state != "done" or total is None else total / max(square.items, 1)

    return value


def _total(name: str) -> Callable[[MatrixCell], float | None]:
    def value(square: MatrixCell) -> float | None:
        total: int | None = getattr(square, name)
        return None if total is None else float(total)

    return value


def _accuracy(square: MatrixCell) -> float | None:
    return square.robust.k / square.robust.n if square.robust and square.robust.n else None


def _number(square: MatrixCell, value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


FULL_MODE_METRICS: Mapping[str, CellMetric] = {
    ACCURACY_NAME: CellMetric(
        "Share of the examples that are right on the clean image and that this attack did not"
        " break, in percent. Higher is better for the defense.",
        _accuracy,
        lambda square, share: f"{100 * share:.1f}",
        share=True,
    ),
    "gradients an example": CellMetric(
        "Gradients that the attack asked for, up to its first success, averaged over the examples.",
        _each("gradients"),
        _number,
    ),
    "forward passes an example": CellMetric(
        "Forward passes that the attack asked for, those with a gradient included, averaged.",
        _each("forwards"),
        _number,
    ),
    "seconds an example": CellMetric(
        "CPU seconds, averaged over the examples.", _each("seconds"), lambda _, s: f"{s:.2g}"
    ),
    "refused offers": CellMetric(
        "Examples whose offer the referee refused: outside the set or the box, or not finite.",
        _total("out_of_ball"),
        _number,
    ),
    "fragile wins": CellMetric(
        "Broken examples whose margin is under 1e-4 of the logit scale.",
        _total("fragile"),
        _number,
    ),
}


SURVIVOR_ACCURACY = "right of the survivors met"


def _of_met(square: MatrixCell, share: float) -> str:
    """An attack of a cascade speaks of those it met, so their number stands beside."""
    return f"{square.robust.k} of {square.robust.n}" if square.robust else ""


RANK_MODE_METRICS: Mapping[str, CellMetric] = {
    SURVIVOR_ACCURACY: CellMetric(
        "k of the n survivors of earlier attacks that are right and that this attack did not break"
        " either. Attacks stand in the order in which they came.",
        _accuracy,
        _of_met,
        share=True,
    ),
    **{name: metric for name, metric in FULL_MODE_METRICS.items() if name != ACCURACY_NAME},
}


def cell_metrics(board: Leaderboard) -> Mapping[str, CellMetric]:
    """The figures that the cells of a board have."""
    return RANK_MODE_METRICS if board.mode == "rank" else FULL_MODE_METRICS


def matrix_tiles(squares: Iterable[MatrixCell], metric: CellMetric) -> list[ChartRow]:
    """The cells of the matrix, with a figure or with the state that stands for it."""
    return [_tile(square, metric) for square in squares]


def _tile(square: MatrixCell, metric: CellMetric) -> ChartRow:
    value = metric.value(square)
    without = _without(square)
    said = words.format_interval(square.robust) if value is not None else square.reason or without
    return {
        "defense": square.defense,
        "attack": square.attack,
        "state": square.state,
        "value": value,
        "shown": without if value is None else metric.shown(square, value),
        "words": said if metric.share or value is None else metric.shown(square, value),
    }


def _without(square: MatrixCell) -> str:
    if square.state == "running":
        return f"running {square.items_done}/{square.items}"
    if square.state == "done":
        return "nobody left" if square.robust is not None and not square.robust.n else "—"
    return words.STATE_LABELS[square.state]


def margin_tiles(rows: Iterable[RankingRow]) -> list[ChartRow]:
    """Clean accuracy and the worst case over all attacks, as columns of the matrix."""
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
    """Where the colour scale ends."""
    if metric.share:
        return 1.0
    return max((row["value"] for row in drawn if row["value"] is not None), default=1.0)


def attack_columns(board: Leaderboard, squares: Sequence[MatrixCell]) -> list[str]:
    """The attacks in the order of their columns: the strongest first, or as they came."""
    return cascade_order(squares) if board.mode == "rank" else strongest_first(squares)


def evaluated_attacks(attacks: Sequence[str], squares: Iterable[MatrixCell]) -> list[str]:
    """Those of the attacks that any defense has met; all of them where none has met any."""
    played = {square.attack for square in squares if square.state not in NOT_EVALUATED}
    return [attack for attack in attacks if attack in played] or list(attacks)


def left_out_note(attacks: Sequence[str], shown: Sequence[str]) -> str:
    """How many have no column, as a sentence; empty where all have one."""
    left = len(attacks) - len(shown)
    return f"Left out: {words.plural(left, 'attack')} that no defense has met." if left else ""


def cascade_order(squares: Sequence[MatrixCell]) -> list[str]:
    """Attacks of a cascade, as the squares of its board stand."""
    return list(dict.fromkeys(square.attack for square in squares))


def strongest_first(squares: Sequence[MatrixCell]) -> list[str]:
    """Attacks by the mean accuracy they leave; those without a figure last."""
    left: dict[str, list[float]] = {square.attack: [] for square in squares}
    for square in squares:
        share = _accuracy(square)
        if share is not None:
            left[square.attack].append(share)
    return sorted(left, key=lambda name: (np.mean(left[name]) if left[name] else 2.0, name))


def interval_rows(rows: Iterable[RankingRow]) -> list[ChartRow]:
    """What a forest plot shows: clean, robust, claimed and certified figures."""
    drawn: list[ChartRow] = []
    for row in rows:
        drawn.append(_interval(row.defense, "clean", row.clean))
        drawn.append(_interval(row.defense, "robust", row.robust))
        if row.certified is not None:
            drawn.append(_interval(row.defense, "certified", row.certified.count))
        if row.claim is not None:
            said = row.claim.robust
            drawn.append({"defense": row.defense, "what": "claimed", "value": said, "low": said,
                          "high": said, "words": f"{100 * said:.1f} %"})  # fmt: skip
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
    """Clean against robust accuracy, one point a defense, with a free height for its name."""
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
    """The heights, those too near to the one below lifted until `least` lies between them."""
    lifted = [0.0] * len(heights)
    below = -least
    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        lifted[index] = below = max(heights[index], below + least)
    return lifted


def accuracy_rows(
    curves: Mapping[str, AccuracyCurve], attacks: Mapping[str, AttackCard] | None
) -> list[ChartRow]:
    """Accuracy as the attacker spends more; with `attacks`, each line ends where its steps end."""
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
    """At most `CORNERS` corners, the first and the last among them, and a level end."""
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, MAX_POINTS).astype(int))
    made = [(float(curve.x[i]), int(curve.correct[i])) for i in chosen]
    return [*made, (end, made[-1][1])] if end > made[-1][0] else made


def radius_rows(
    distances: Mapping[str, AccuracyCurve], points: Iterable[RadiusPoint]
) -> list[ChartRow]:
    """Curves of smallest distances, and one point for each board of a fixed radius."""
    drawn = [
        {**row, "eps": row["step"], "kind": "smallest distance"}
        for row in accuracy_rows(distances, None)
    ]
    for point in points:
        note = "" if point.complete else ", provisional"
        drawn.append(_at_radius(point, "all attacks, one board each", point.robust, note))
        if point.certified is not None:
            by = f", {words.certificate_note(point.certified)}"
            drawn.append(_at_radius(point, "proved, one board each", point.certified.count, by))
    return drawn


def _at_radius(point: RadiusPoint, name: str, count: Count, note: str) -> ChartRow:
    """One side of the sandwich: what attacks left, or what is proved."""
    return {
        "attack": name,
        "eps": point.radius,
        "accuracy": count.k / count.n,
        "kind": "fixed radius",
        "words": f"{words.format_count(count)} ({words.format_interval(count)}){note}",
    }


def roc_rows(curves: Mapping[str, DetectorRoc]) -> list[ChartRow]:
    """The corners of each attack's ROC, and where the threshold of the defense stands on it."""
    drawn: list[ChartRow] = []
    for name, curve in curves.items():
        chosen = np.unique(np.linspace(0, len(curve.clean) - 1, MAX_POINTS).astype(int))
        corners = [(float(curve.clean[i]), float(curve.attacked[i])) for i in chosen]
        drawn += [_rejected(name, at, *corner, here=False) for at, corner in enumerate(corners)]
        drawn.append(_rejected(name, len(corners), *curve.at, here=True))
    return drawn


def _rejected(attack: str, at: int, clean: float, attacked: float, *, here: bool) -> ChartRow:
    said = f"{100 * attacked:.1f} % at {100 * clean:.1f} %"
    return {
        "attack": attack, "at": at, "clean": clean, "attacked": attacked, "here": here,
        "words": f"{said}, at its threshold" if here else said,
    }  # fmt: skip

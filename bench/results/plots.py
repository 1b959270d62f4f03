"""The figures of a database: curves, matrix, gallery, and the files that they are written to."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.core.errors import BenchError
from bench.core.radii import exact_fraction, radius_text
from bench.core.statistics import Count
from bench.results.curves import (
    POINT_COLUMNS,
    ParameterCurve,
    chosen_names,
    curves_over_radii,
    curves_over_steps,
)
from bench.results.example_results import load_results
from bench.results.export import written_whole
from bench.results.figures import draw_accuracy_matrix, draw_curve_panels, draw_gallery
from bench.results.gallery import load_gallery
from bench.results.leaderboards import Leaderboard
from bench.results.matrix import matrix_cells
from bench.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_FORMATS = ("svg", "png", "pdf")
DOTS_PER_INCH = 200
MOST_PANELS = 6
MOST_LINES = 8
MOST_TICKS = 8
LEAST_GAP = 0.11
"""Of the axis: texts of values that are nearer to each other would touch."""
NORM_SIGNS = {"Linf": "L\N{INFINITY}"}
Points = Sequence[tuple[float, Count]]


def load_curves(
    store: Store, board: Leaderboard, parameter: str, names: tuple[Sequence[str], Sequence[str]]
) -> list[ParameterCurve]:
    """The curves over `eps` or `steps` of the named defenses and attacks; empty: all.

    Raises BenchError where a name is unknown, or there is no curve.
    """
    if parameter == "eps":
        return curves_over_radii(store, board, *names)
    return curves_over_steps(load_results(store, board), *names)


def curves_figure(
    board: Leaderboard,
    parameter: str,
    curves: Sequence[ParameterCurve],
    *,
    logarithmic: bool = False,
) -> Figure:
    """A panel for each defense with a line for each attack; of one attack a line for each defense.

    Raises BenchError where there are more panels or lines than can be told apart.
    """
    panels: dict[str, dict[str, Points]] = {}
    one_attack = len({curve.attack for curve in curves}) == 1
    for curve in curves:
        panel, line = (curve.attack, curve.defense) if one_attack else (curve.defense, curve.attack)
        panels.setdefault(panel, {})[line] = curve.points
    if len(panels) > MOST_PANELS or max(map(len, panels.values())) > MOST_LINES:
        raise BenchError(
            f"{len(panels)} panels with up to {max(map(len, panels.values()))} lines are more than "
            f"one figure shows ({MOST_PANELS} of {MOST_LINES}); choose some with --defense and "
            "--attack."
        )
    norm = NORM_SIGNS.get(str(board.set["name"]), str(board.set["name"]))
    label = f"radius eps ({norm}, pixels in [0, 1])" if parameter == "eps" else "steps of a restart"
    where = f"{board.dataset}, {norm}" if parameter == "eps" else board.name
    title = f"{where}: {board.n} examples, 95 % intervals"
    ticks = _ticks(curves, logarithmic=logarithmic)
    return draw_curve_panels(panels, title, label, logarithmic=logarithmic, ticks=ticks)


def _ticks(curves: Sequence[ParameterCurve], *, logarithmic: bool) -> list[tuple[float, str]]:
    """The values of the curves with their text, where they are few and far apart enough to read."""
    values = sorted({x for curve in curves for x, _ in curve.points if x > 0 or not logarithmic})
    places = np.log(values) if logarithmic else np.array(values)
    if not 2 <= len(values) <= MOST_TICKS or np.diff(places).min() < LEAST_GAP * np.ptp(places):
        return []
    return [(x, radius_text(exact_fraction(x))) for x in values]


def matrix_figure(
    store: Store, board: Leaderboard, names: tuple[Sequence[str], Sequence[str]]
) -> Figure:
    """Robust accuracy of the named defenses under the named attacks, the strongest ones first.

    Defenses and attacks stand in the order of their mean accuracy; attacks without any figure are
    left out. Raises BenchError where a name is unknown, or there is no figure.
    """
    cells = {(c.defense, c.attack): c for c in matrix_cells(load_results(store, board))}
    done = {pair: c.robust for pair, c in cells.items() if c.robust is not None and c.robust.n}
    defenses = chosen_names(names[0], dict.fromkeys(d for d, _ in done), "defense")
    attacks = chosen_names(names[1], dict.fromkeys(a for _, a in done), "attack")
    if not done:
        raise BenchError(f"no cell of {board.name} is done; `bench run` evaluates some.")

    def mean(place: int, name: str) -> float:
        found = [c.k / c.n for pair, c in done.items() if pair[place] == name]
        return sum(found) / len(found)

    defenses.sort(key=lambda name: (-mean(0, name), name))
    attacks.sort(key=lambda name: (mean(1, name), name))
    shown: dict[tuple[str, str], Count | str] = {
        (d, a): done.get((d, a)) or cells[d, a].state for d in defenses for a in attacks
    }
    title = f"{board.name}: {board.n} examples, 95 % intervals below"
    return draw_accuracy_matrix(shown, defenses, attacks, title, board.n)


def gallery_figure(
    store: Store,
    board: Leaderboard,
    names: tuple[Sequence[str], Sequence[str]],
    examples: int,
) -> Figure:
    """Clean images, adversarial examples and differences of one defense under some attacks.

    Raises BenchError where no single defense is named, or no image of it is stored.
    """
    results = load_results(store, board)
    defenses = chosen_names(names[0], results.defenses, "defense")
    if len(defenses) != 1:
        raise BenchError(
            f"a gallery shows one defense; {len(defenses)} are chosen: name one of "
            f"{', '.join(results.defenses)} with --defense."
        )
    known = results.defenses[defenses[0]].attacks
    attacks = chosen_names(names[1], known, "attack") if names[1] else ()
    found = load_gallery(store, results, defenses[0], attacks, examples)
    eps = f"{board.set['name']} {radius_text(exact_fraction(str(board.set['eps'])))}"
    title = f"{defenses[0]} on {board.dataset}, {eps}; grey: no difference"
    return draw_gallery(found.rows, found.heads, title)


def write_figure(figure: Figure, path: Path, root: str) -> None:
    """Write a figure as svg, png or pdf, whole or not at all.

    The same figure gives the same bytes; the root of the results stands in the file. Raises
    UnavailableError where the file cannot be written.
    """
    import matplotlib as mpl

    kind = path.suffix[1:].lower()
    about = f"Gauntlet, results {root}"
    metadata = {
        "svg": {"Description": about, "Date": None},
        "png": {"Description": about},
        "pdf": {"Subject": about, "CreationDate": None},
    }[kind]
    settings: dict[Any, Any] = {
        "svg.hashsalt": "gauntlet", "svg.fonttype": "none", "pdf.fonttype": 42,
    }  # fmt: skip
    with mpl.rc_context(settings), written_whole(path) as partial:
        figure.savefig(partial, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)


def write_points(curves: Sequence[ParameterCurve], parameter: str, path: Path) -> None:
    """Write the points of curves as CSV. Raises UnavailableError where the file cannot be."""
    header = [parameter if name == "x" else name for name in POINT_COLUMNS]
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(row for curve in curves for row in curve.rows())

"""Figures on paper, drawn with matplotlib: curves, bars, a matrix of figures, image galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.core.statistics import Count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCH_PER_PANEL = (3.6, 2.9)
"""Width and height of one panel of curves."""
LINE_COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555", "#000000",
)  # fmt: skip
"""Colours that stay apart for colour-blind readers (Okabe and Ito), and two greys."""
LINE_MARKERS = "os^DvPX*"
MOST_TICK_STEPS = 5
"""Most steps between the numbers at a linear axis of a panel; with more, radii such as 0.125 touch.
"""
DARK_BELOW = 0.55
"""Share below which a cell of the matrix is so dark that its text is white."""


def draw_accuracy_curve(
    points: Mapping[str, Sequence[tuple[float, Count]]],
    title: str,
    label: str,
    axes: Axes | None = None,
) -> Axes:
    """Draw accuracy against a parameter such as the radius, with 95 % intervals.

    Args:
        points: for each line its name and its points.
        title: what is drawn.
        label: the parameter, with its unit.
        axes: where it is drawn; None: a new figure.

    Returns:
        The axes.
    """
    from matplotlib.ticker import MaxNLocator

    drawn = _axes(axes)
    for number, (name, line) in enumerate(points.items()):
        at, counts = [value for value, _ in line], [count for _, count in line]
        shares = [100 * c.k / c.n for c in counts]
        color = LINE_COLORS[number % len(LINE_COLORS)]
        marker = LINE_MARKERS[number % len(LINE_MARKERS)]
        drawn.plot(at, shares, label=name, color=color, marker=marker, markersize=4, linewidth=1.4)
        drawn.errorbar(
            at, shares, yerr=_lengths(counts), fmt="none", ecolor=color, elinewidth=0.8, capsize=2
        )
    if drawn.get_xscale() == "linear":
        drawn.xaxis.set_major_locator(MaxNLocator(MOST_TICK_STEPS))
    drawn.set_xlabel(label)
    drawn.legend(frameon=False, fontsize="small")
    return _finished(drawn, title)


def draw_attack_bars(counts: Mapping[str, Count], title: str, axes: Axes | None = None) -> Axes:
    """Draw accuracy after each attack as bars, with 95 % intervals.

    Args:
        counts: for each attack the examples that it leaves right.
        title: what is drawn.
        axes: where it is drawn; None: a new figure.

    Returns:
        The axes.
    """
    drawn = _axes(axes)
    shares = [100 * c.k / c.n for c in counts.values()]
    lengths = _lengths(list(counts.values()))
    drawn.bar(range(len(counts)), shares, yerr=lengths, capsize=2, color="#4c78a8")
    drawn.set_xticks(range(len(counts)), list(counts), rotation=35, ha="right")
    return _finished(drawn, title)


def draw_curve_panels(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Count]]]],
    title: str,
    label: str,
    *,
    logarithmic: bool = False,
    ticks: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Draw accuracy against a parameter, one panel beside another with the same axes.

    Args:
        panels: for each panel its title, and for each line in it its name and points.
        title: what all panels show.
        label: the parameter, with its unit.
        logarithmic: whether the parameter has a logarithmic axis; points at 0 are left out there.
        ticks: values of the parameter and their text; none: as matplotlib chooses.

    Returns:
        The figure.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = INCH_PER_PANEL
    figure = _new_figure(max(1.25, columns) * width, rows * height + 0.4)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, lines) in zip(grid.flat, panels.items(), strict=False):
        shown = {
            line: [point for point in points if point[0] > 0 or not logarithmic]
            for line, points in lines.items()
        }
        draw_accuracy_curve(shown, name, label, axes)
        if logarithmic:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks([value for value, _ in ticks], [text for _, text in ticks])
            axes.minorticks_off()
    for at, axes in enumerate(grid.flat):
        lowest = at + columns >= len(panels)  # of its column: no panel stands below it
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel(label if lowest else "")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 1:].flat:
        axes.set_ylabel("")
    figure.suptitle(title, fontsize="medium")
    return figure


def draw_accuracy_matrix(
    cells: Mapping[tuple[str, str], Count | str],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    n: int,
) -> Figure:
    """Draw robust accuracy of every defense under every attack as a heat map.

    Args:
        cells: by (row, column) the count, drawn with its 95 % interval, or why there is none.
        rows: names from the top.
        columns: names from the left.
        title: what is drawn.
        n: the number of examples; a cell with another number states it.

    Returns:
        The figure.
    """
    shares = np.full((len(rows), len(columns)), np.nan)
    for (row, column), cell in cells.items():
        if isinstance(cell, Count) and cell.n:
            shares[rows.index(row), columns.index(column)] = cell.k / cell.n
    longest = max(map(len, rows), default=0)
    figure = _new_figure(
        1.6 + 0.09 * longest + 0.62 * len(columns),
        1.3 + 0.07 * max(map(len, columns), default=0) + 0.42 * len(rows),
    )
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_facecolor("#dddddd")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            _write_cell(axes, j, i, cells.get((row, column), ""), n)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("attack")
    axes.set_ylabel("defense")
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, label="robust accuracy, %", fraction=0.05, pad=0.02)
    return figure


def _write_cell(axes: Axes, x: int, y: int, cell: Count | str, n: int) -> None:
    """The share of a count with its interval below, or the state of a cell without one."""
    place: dict[str, Any] = {"ha": "center", "va": "center", "textcoords": "offset points"}
    if not isinstance(cell, Count) or not cell.n:
        words = str(cell or "-").replace(" ", "\n")
        axes.annotate(words, (x, y), (0, 0), fontsize=5.5, color="#333333", **place)
        return
    color = "white" if cell.k / cell.n < DARK_BELOW else "black"
    span = f"{100 * cell.low:.0f}-{100 * cell.high:.0f}"
    share = f"{100 * cell.k / cell.n:.1f}"
    below = span if cell.n == n else f"{span}\nn={cell.n}"
    axes.annotate(share, (x, y), (0, 4), fontsize=8, color=color, **place)
    axes.annotate(below, (x, y), (0, -5 if cell.n == n else -8), fontsize=5.5, color=color, **place)


@dataclass(frozen=True)
class GalleryPicture:
    """One picture of a gallery with a line of text below it."""

    pixels: npt.NDArray[np.floating[Any]]
    """[H, W] or [H, W, 3] in [0, 1]."""
    caption: str
    color: str = "black"
    """Of the caption."""


def draw_gallery(
    rows: Sequence[Sequence[GalleryPicture | None]], heads: Sequence[str], title: str
) -> Figure:
    """Draw pictures in rows below the headings of their columns.

    Args:
        rows: the pictures of each row; None leaves the place empty.
        heads: the headings of the columns.
        title: what is drawn.

    Returns:
        The figure.
    """
    figure = _new_figure(1.35 * len(heads) + 0.1, 1.42 * len(rows) + 0.7)
    grid = figure.subplots(len(rows), len(heads), squeeze=False)
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=8)
    for line, row in zip(grid, rows, strict=True):
        for axes, picture in zip(line, row, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if picture is None:
                axes.set_axis_off()
                continue
            axes.imshow(picture.pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xlabel(picture.caption, fontsize=7, color=picture.color, labelpad=2)
    figure.suptitle(title, fontsize=9)
    return figure


def _lengths(counts: Sequence[Count]) -> list[list[float]]:
    """The lengths of the intervals below and above the shares, in percent."""
    return [
        [max(0.0, 100 * (c.k / c.n - c.low)) for c in counts],
        [max(0.0, 100 * (c.high - c.k / c.n)) for c in counts],
    ]


def _axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, which no window manager holds."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _finished(axes: Axes, title: str) -> Axes:
    axes.set_ylabel("robust accuracy, %")
    axes.set_ylim(-1, 101)
    axes.set_title(title, fontsize="medium")
    axes.grid(visible=True, alpha=0.3)
    return axes

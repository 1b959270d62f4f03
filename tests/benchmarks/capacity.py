"""Accuracy over the width of a network, standard and adversarial training; writes docs/capacity.md.

    python -m tests.benchmarks.capacity [--width N]... [--seeds N] [--out PAGE]

Networks of several widths on the digits testbed (about six minutes of one CPU core); the figure
lies beside the page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from torch import nn

from bench.core.statistics import Count, count_interval
from bench.plugin import Recipe
from bench.results.figures import draw_curve_panels
from bench.results.plots import write_figure
from plugins.defenses._losses import adversarial_loss
from tests.fixtures.protocol_dg import TEST, DigitsTestbed, pgd, recipe

WIDTHS = (4, 8, 16, 64, 256)
SEEDS = 2
EVALUATION = pgd(10)
TRAININGS = ("standard training", "PGD training")
LINES = ("clean", "PGD-10")
PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"
HEAD = """# Capacity and robust accuracy

A network needs more capacity to be robust than to be accurate (arXiv:1706.06083): with few hidden
units, adversarial training ends in a network that predicts one or two classes whatever the image,
where standard training of the same network learns. Width alone is no defense. Networks
64 - w - w - 10 on the scikit-learn digits, adversarial training by seven steps of PGD and
evaluation by ten, both within L-infinity 0.15; each figure is the mean over {seeds} seeds of the
share of {test} test images, evaluated without the referee. This page is written by

    uv run python -m tests.benchmarks.capacity

![Accuracy over capacity](capacity.svg)

| w | standard training: clean | PGD-10 | PGD training: clean | PGD-10 |
|---:|---:|---:|---:|---:|
"""

Points = list[tuple[float, Count]]
Curves = dict[str, dict[str, Points]]


def of_width(hidden: int, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """64 - hidden - hidden - 10, the network of the testbed at another width."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


def plain_recipe(hidden: int, seed: int = 0) -> Recipe:
    """Standard training of a network of this width."""
    return recipe(model=partial(of_width, hidden), seed=seed)


def robust_recipe(hidden: int, seed: int = 0) -> Recipe:
    """Adversarial training with seven steps of PGD of a network of this width."""
    return recipe(adversarial_loss, inner=pgd(7), model=partial(of_width, hidden), seed=seed)


def plain(testbed: DigitsTestbed, hidden: int, seed: int = 0) -> nn.Module:
    """The network of this width after standard training."""
    return testbed.train(f"plain-{hidden}-{seed}", plain_recipe(hidden, seed))


def robust(testbed: DigitsTestbed, hidden: int, seed: int = 0) -> nn.Module:
    """The network of this width after adversarial training."""
    return testbed.train(f"robust-{hidden}-{seed}", robust_recipe(hidden, seed))


def capacity_curves(testbed: DigitsTestbed, widths: Sequence[int], seeds: int = 1) -> Curves:
    """Clean accuracy and accuracy under PGD at each width, for both trainings, over all seeds."""
    curves: Curves = {}
    for training, train in zip(TRAININGS, (plain, robust), strict=True):
        lines: dict[str, Points] = {name: [] for name in LINES}
        for width in widths:
            models = [train(testbed, width, seed) for seed in range(seeds)]
            shares = (
                sum(testbed.clean(model) for model in models),
                sum(testbed.robust(model, EVALUATION) for model in models),
            )
            for name, share in zip(LINES, shares, strict=True):
                count = count_interval(round(share * TEST), seeds * TEST)
                lines[name].append((float(width), count))
        curves[training] = lines
    return curves


def capacity_figure(curves: Curves) -> Figure:
    """One panel for each training, with the width on a logarithmic axis."""
    widths = [width for width, _ in curves[TRAININGS[1]][LINES[0]]]
    return draw_curve_panels(
        curves, "Accuracy over capacity, digits, L-infinity 0.15", "hidden units a layer",
        logarithmic=True, ticks=[(width, f"{width:g}") for width in widths],
    )  # fmt: skip


def capacity_page(curves: Curves, seeds: int) -> str:
    """The page: what is shown, the figure and the table."""
    columns = [curves[training][name] for training in TRAININGS for name in LINES]
    rows = []
    for points in zip(*columns, strict=True):
        cells = [f"{points[0][0]:g}", *(f"{count.k / count.n:.1%}" for _, count in points)]
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD.format(seeds=seeds, test=TEST) + "".join(rows)


def main(
    width: Annotated[list[int] | None, typer.Option(help="Hidden units; can be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each network.")] = SEEDS,
    out: Annotated[Path, typer.Option(help="The page; the figure lies beside it.")] = PAGE,
) -> None:
    """Train, evaluate, and write the page and its figure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        curves = capacity_curves(DigitsTestbed(Path(folder)), width or WIDTHS, seeds)
    out.write_text(capacity_page(curves, seeds))
    write_figure(capacity_figure(curves), out.with_suffix(".svg"), "of no database")


if __name__ == "__main__":
    typer.run(main)

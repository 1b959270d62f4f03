"""Points of parametric sets in words, as a run stores them and the page of a defense shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.results.defense_report import defense_report
from bench.results.leaderboards import find_leaderboard
from bench.results.point_texts import point_text
from bench.store import Store
from leaderboard import defense_tables

ROTATION = {"name": "rotation-translation", "parameters": {"degrees": 30.0, "pixels": 2.0}}
PATCH = {
    "name": "patch", "parameters": {"height": 3, "width": 2, "top": 1, "left": 4, "eps": "1"},
}  # fmt: skip
PRINT = {
    "name": "masked-pattern",
    "parameters": {"region": "glasses", "top": 0.25, "left": 0.0, "height": 0.5, "width": 1.0},
}


@pytest.mark.parametrize(
    ("known", "point", "says"),
    [
        (ROTATION, np.zeros(3), "rotated by 0.0 degrees, moved 0.00 pixels to the right and 0.00"),
        (ROTATION, np.array([1, -1, 0.5]), "rotated by 30.0 degrees, moved -2.00 pixels to the"),
        (PATCH, np.ones((1, 3, 2)), "a patch of 1 x 3 x 2 values from row 1 and column 4 on"),
        ({"name": "random-patch"}, np.ones((1, 3, 3)), "whose place is drawn for each image"),
        (PRINT, np.ones((1, 4, 8)), "50% of the height and 100% of the width, 25% from the top"),
        ({"name": "colour-shift"}, np.array([0.5, -0.25]), "point (0.5, -0.25)"),
        ({"name": "linf-delta"}, np.full((1, 8, 8), -0.2), "point of 1 x 8 x 8 values"),
    ],
)  # fmt: skip
def test_a_point_is_told_in_words(
    known: dict[str, object], point: npt.NDArray[np.float64], says: str
) -> None:
    assert says in point_text(known, point.astype(np.float32))


def test_the_page_of_a_defense_tells_the_angle_of_each_image(tmp_path: Path) -> None:
    selection = Selection(("digits-rotation",), ("linear",), ("pgd",), examples=24)
    run = MatrixRun(
        selection, f"sqlite:///{tmp_path / 'bench.db'}", quiet=True, certify="none",
        keep_images="sample",
    )  # fmt: skip
    assert run.run() == 0
    with Store.open(run.url, read_only=True) as store:
        board = find_leaderboard(store, "digits-rotation")
        report = defense_report(store, board, "linear")
        (row,) = [row for row in store.cells() if row.cell.attack == "pgd"]
        items, points = store.points(row.key) or (np.zeros(0), np.zeros((0, 3)))
    kept = report.images["pgd"]
    assert kept and set(report.points["pgd"]) == {image.item for image in kept}
    item = kept[0].item
    angle = 30 * float(points[items.tolist().index(item)][0])
    assert f"rotated by {angle:.1f} degrees" in report.points["pgd"][item]
    said = defense_tables.example_pictures(kept, ["x"] * 10, report.points["pgd"])
    assert f"example {item}: rotated by {angle:.1f} degrees" in said

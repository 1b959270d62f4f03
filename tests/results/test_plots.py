"""Figures of a database: their points, texts and intervals are those of the counts.

The command is that of bench.cli.plot_commands.
"""

from __future__ import annotations

import csv
import itertools
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError
from bench.core.outcomes import KeptImage
from bench.core.statistics import Count, count_interval
from bench.results.curves import ParameterCurve, curves_over_radii, curves_over_steps
from bench.results.example_results import LeaderboardResults, load_results
from bench.results.figures import draw_curve_panels
from bench.results.gallery import load_gallery
from bench.results.leaderboards import Leaderboard, find_leaderboard
from bench.results.plots import curves_figure, matrix_figure
from bench.store import Store
from tests.fixtures.small_store import World, first, outcomes
from tests.results.small_results import ALL, enter

N = 600
RADII = {"linf": 0.2, "linf[eps=0.05]": 0.05, "linf[eps=0.1]": 0.1}
BROKEN = {"linf": (200, 300), "linf[eps=0.05]": (40, 60), "linf[eps=0.1]": (90, 150)}
"""Examples that fgsm and pgd break within each radius."""
WRONG = 12
"""Examples that are misclassified without an attack."""


@pytest.fixture
def radii(store: Store) -> World:
    """Two defenses under fgsm and pgd within three radii; `e` met fgsm within one radius alone."""
    made = World(store)
    made.attack("fgsm", steps=1)
    made.attack("pgd", steps=40)
    for name, eps in RADII.items():
        made.threat(name, "fgsm", "pgd", eps=eps, ranked=name == "linf")
    for defense in ("d", "e"):
        made.defense(defense)
        made.clean(defense, ~first(WRONG))
    for name, (fgsm, pgd) in BROKEN.items():
        made.evaluate("d", "fgsm", first(fgsm), threat=name)
        made.evaluate("d", "pgd", first(pgd), threat=name)
        made.evaluate("e", "pgd", first(pgd + 20), threat=name)
    made.evaluate("e", "fgsm", first(250))
    return made


@pytest.fixture
def steps(world: World) -> World:
    """PGD with 5, 10 and 40 steps, and with another rate."""
    enter(world, "d", ALL)
    for name, number, broken in (
        ("pgd", 40, 300), ("pgd[steps=10]", 10, 200), ("pgd[steps=5]", 5, 90),
        ("pgd[steps=5,rate=1.0]", 5, 95), ("pgd[steps=20,rate=1.0]", 20, 280), ("fgsm", 1, 60),
    ):  # fmt: skip
        world.attack(name, steps=number)
        world.evaluate("d", name, first(broken))
    return world


def board_of(world: World, threat: str = "linf") -> Leaderboard:
    return find_leaderboard(world.store, threat)


def results_of(world: World) -> LeaderboardResults:
    return load_results(world.store, board_of(world))


def plotted(world: World, *words: str) -> Result:
    return CliRunner().invoke(app, ["plot", *words, "--db", world.store.url])


def counts(*right: int) -> list[Count]:
    return [count_interval(k, N) for k in right]


def test_a_curve_begins_with_clean_accuracy_and_has_a_point_for_each_radius(radii: World) -> None:
    found = {
        (c.defense, c.attack): c.points for c in curves_over_radii(radii.store, board_of(radii))
    }
    assert set(found) == {("d", "fgsm"), ("d", "pgd"), ("e", "pgd")}, "two radii or more"
    at = (0, 0.05, 0.1, 0.2)
    assert found["d", "fgsm"] == tuple(
        zip(at, counts(N - WRONG, N - 40, N - 90, N - 200), strict=True)
    )
    assert found["e", "pgd"] == tuple(
        zip(at, counts(N - WRONG, N - 80, N - 170, N - 320), strict=True)
    )


def test_the_curve_is_the_same_from_every_leaderboard(radii: World) -> None:
    curves = [curves_over_radii(radii.store, board_of(radii, name)) for name in RADII]
    assert curves[0] == curves[1] == curves[2]


def test_a_version_of_a_defense_is_drawn_alone(radii: World) -> None:
    radii.defense("d", version="2")
    radii.clean("d", ALL)
    radii.evaluate("d", "pgd", first(1))
    radii.evaluate("d", "fgsm", first(1))
    (curve,) = curves_over_radii(radii.store, board_of(radii), ["d"], ["pgd"])
    assert [count.k for _, count in curve.points] == [N - WRONG, N - 60, N - 150], "of version 1"


def test_an_attack_on_the_first_examples_is_counted_on_those(radii: World) -> None:
    radii.attack("limited", examples=100)
    for name in RADII:
        radii.evaluate("d", "limited", first(30, 100), threat=name)
    (curve,) = curves_over_radii(radii.store, board_of(radii), attacks=["limited"])
    assert {count.n for _, count in curve.points} == {100}
    assert [count.k for _, count in curve.points] == [100 - WRONG, 70, 70, 70]


def test_names_and_patterns_choose_curves(radii: World) -> None:
    def chosen(defenses: list[str], attacks: list[str]) -> list[tuple[str, str]]:
        found = curves_over_radii(radii.store, board_of(radii), defenses, attacks)
        return [(curve.defense, curve.attack) for curve in found]

    assert chosen(["d"], ["pgd", "f*", "pgd"]) == [("d", "pgd"), ("d", "fgsm")]
    with pytest.raises(BenchError, match=r"no attack 'pdg' here; there are fgsm, pgd\."):
        chosen([], ["pdg"])
    with pytest.raises(BenchError, match=r"no defense 'x\*' here; there are d, e\."):
        chosen(["x*"], [])


def test_variants_that_differ_in_their_steps_are_one_curve(steps: World) -> None:
    found = {curve.attack: curve.points for curve in curves_over_steps(results_of(steps))}
    assert found == {
        "pgd": tuple(zip((5, 10, 40), counts(510, 400, 300), strict=True)),
        "pgd[rate=1.0]": tuple(zip((5, 20), counts(505, 320), strict=True)),
    }
    (one,) = curves_over_steps(results_of(steps), ["d"], ["pgd[rate=1.0]"])
    assert one.attack == "pgd[rate=1.0]"


def test_a_database_without_a_curve_says_what_to_run(world: World) -> None:
    enter(world, "d", ALL, first(10), first(20))
    with pytest.raises(BenchError, match="bench run --threat linf --eps 2/255,4/255,8/255"):
        curves_over_radii(world.store, board_of(world))
    with pytest.raises(BenchError, match=r"bench run --threat linf --set pgd\.steps=5,10,20,40"):
        curves_over_steps(results_of(world))


def test_lines_and_intervals_are_drawn_at_the_counts(radii: World) -> None:
    curves = curves_over_radii(radii.store, board_of(radii))
    figure = curves_figure(board_of(radii), "eps", curves)
    axes = {one.get_title(): one for one in figure.axes if one.get_title()}
    assert set(axes) == {"d", "e"}
    assert axes["d"].get_ylabel() == "robust accuracy, %"
    assert axes["d"].get_xlabel() == "radius eps (L∞, pixels in [0, 1])"
    for curve in curves:
        drawn = axes[curve.defense]
        lines: dict[object, Any] = {line.get_label(): line for line in drawn.get_lines()}
        wanted = [(x, 100 * count.k / N) for x, count in curve.points]
        np.testing.assert_allclose(lines[curve.attack].get_xydata(), wanted)
        spans = [
            sorted(float(y) for _, y in segment)
            for bars in drawn.collections
            for segment in bars.get_segments()  # type: ignore[attr-defined]
        ]
        for _, count in curve.points:
            assert any(np.allclose(s, (100 * count.low, 100 * count.high)) for s in spans)


def test_one_attack_has_a_line_for_each_defense(radii: World) -> None:
    curves = curves_over_radii(radii.store, board_of(radii), attacks=["pgd"])
    figure = curves_figure(board_of(radii), "eps", curves, logarithmic=True)
    (axes,) = [one for one in figure.axes if one.get_title()]
    assert axes.get_title() == "pgd" and axes.get_xscale() == "log"
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["d", "e"]
    starts = [float(np.asarray(line.get_xdata())[0]) for line in axes.get_lines()]
    assert min(starts) == 0.05, "0 has no place on this axis"


@pytest.mark.parametrize(
    ("values", "logarithmic", "texts"),
    [
        ((0, 0.05, 0.1), False, ["0", "0.05", "0.1"]),
        ((8 / 255, 16 / 255), False, ["8/255", "16/255"]),
        ((0, 0.01, 0.2), False, None),
        ((5, 10, 20, 40), True, ["5", "10", "20", "40"]),
        ((0.01, 0.1, 0.11), True, None),
        (tuple(range(9)), False, None),
    ],
)
def test_values_are_written_at_the_axis_where_there_is_room(
    radii: World, values: tuple[float, ...], logarithmic: bool, texts: list[str] | None
) -> None:
    points = tuple((value, count_interval(1, 2)) for value in values)
    curves = [ParameterCurve("d", "pgd", points)]
    figure = curves_figure(board_of(radii), "eps", curves, logarithmic=logarithmic)
    shown = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    at_values = np.array_equal(figure.axes[0].get_xticks(), values)
    assert (shown, at_values) == (texts, True) if texts else not at_values


@pytest.mark.parametrize("largest", [4 / 255, 0.2, 0.5, 3.0])
@pytest.mark.parametrize("panels", [1, 3])
def test_the_numbers_at_the_axis_do_not_touch(largest: float, panels: int) -> None:
    line = [(share * largest, count_interval(1, 2)) for share in (0.0, 0.3, 1.0)]
    figure = draw_curve_panels({f"{i}": {"pgd": line} for i in range(panels)}, "title", "radius")
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        at_ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        boxes = [text.get_window_extent() for tick, text in at_ticks if low <= tick <= high]
        assert len(boxes) >= 3
        space = figure.dpi / 72 * 4  # four points
        assert all(a.x1 + space < b.x0 for a, b in itertools.pairwise(boxes))


def test_too_many_lines_are_refused(radii: World) -> None:
    point = ((0.0, count_interval(1, 2)), (0.1, count_interval(1, 2)))
    many = [ParameterCurve("d", f"a{i}", point) for i in range(9)]
    with pytest.raises(BenchError, match="1 panels with up to 9 lines are more than one figure"):
        curves_figure(board_of(radii), "eps", many)


def svg_texts(path: Path) -> list[str]:
    return [e.text or "" for e in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_the_matrix_has_every_share_with_its_interval(radii: World, tmp_path: Path) -> None:
    radii.attack("bim")
    radii.plan(radii.cell("d", "bim"), CellState.NOT_APPLICABLE, "It does not apply.")
    radii.evaluate("e", "bim", first(400))
    out = tmp_path / "matrix.svg"
    done = plotted(radii, "matrix", "--threat", "linf", "--out", str(out))
    assert done.exit_code == 0, done.output
    texts = svg_texts(out)
    for broken in (200, 300, 320, 250, 400):
        count = count_interval(N - broken, N)
        assert f"{100 * count.k / N:.1f}" in texts
        assert f"{100 * count.low:.0f}-{100 * count.high:.0f}" in texts
    assert {"d", "e", "fgsm", "pgd", "bim", "attack", "defense"} <= set(texts)
    assert "robust accuracy, %" in texts and {"not", "applicable"} <= set(texts)
    assert "linf: 600 examples, 95 % intervals below" in texts


def test_the_colors_of_the_matrix_are_the_shares(radii: World) -> None:
    figure = matrix_figure(radii.store, board_of(radii), ((), ()))
    axes = figure.axes[0]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    columns = [text.get_text() for text in axes.get_xticklabels()]
    assert (rows, columns) == (["d", "e"], ["pgd", "fgsm"]), "the strongest first"
    image = axes.images[0].get_array()
    expected = [[N - 300, N - 200], [N - 320, N - 250]]
    np.testing.assert_allclose(np.asarray(image), 100 * np.array(expected) / N)


@pytest.mark.parametrize(
    ("suffix", "start"),
    [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")],
)
def test_a_file_is_written_whole_and_the_same_each_time(
    radii: World, tmp_path: Path, suffix: str, start: bytes
) -> None:
    written = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.{suffix}"
        done = plotted(radii, "accuracy-eps", "--threat", "linf", "--out", str(out))
        assert done.exit_code == 0, done.output
        written.append(out.read_bytes())
    assert written[0] == written[1] and written[0].startswith(start)
    if suffix != "pdf":
        assert radii.store.root().encode() in written[0]
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_the_points_of_a_curve_are_written_as_csv(radii: World, tmp_path: Path) -> None:
    out = tmp_path / "curve.csv"
    words = ["--threat", "linf", "--defense", "d", "--out", str(out)]
    assert plotted(radii, "accuracy-eps", *words).exit_code == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    found = [(float(r["eps"]), int(r["k"]), int(r["n"])) for r in rows if r["attack"] == "pgd"]
    assert found == [(0, N - WRONG, N), (0.05, N - 60, N), (0.1, N - 150, N), (0.2, N - 300, N)]
    assert all(float(r["low"]) < int(r["k"]) / N < float(r["high"]) for r in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["curve", "--out", "a.svg"], "bench plot got 'curve'; use one of accuracy-eps, accuracy"),
        (["matrix", "--out", "a.csv"], "--out is 'a.csv'; matrix is written as svg, png, pdf."),
        (["accuracy-eps", "--out", "a"], "accuracy-eps is written as svg, png, pdf, csv."),
        (["accuracy-steps", "--out", "a.png"], "no attack is done with several numbers of steps"),
        (["matrix", "--out", "a.png", "--attack", "no"], "there is no attack 'no' here"),
        (["gallery", "--out", "a.png"], "a gallery shows one defense; 2 are chosen"),
        (["gallery", "--out", "a.png", "--defense", "d"], "no image of any attack against d is"),
        (["matrix", "--out", "no/such/a.png"], "no/such/a.png cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    radii: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = plotted(radii, *words, "--threat", "linf")
    assert isinstance(done.exception, BenchError) and message in str(done.exception)
    assert not list(tmp_path.glob("a*"))


def test_panels_fill_rows_of_three() -> None:
    line = {"pgd": [(0.1, count_interval(1, 2)), (0.2, count_interval(0, 2))]}
    figure = draw_curve_panels({f"d{i}": line for i in range(4)}, "t", "x", ticks=[(0.1, "a")])
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["d0", "d1", "d2", "d3"]
    labels = [[text.get_text() for text in axes.get_xticklabels()] for axes in shown]
    assert labels[1:] == [["a"]] * 3, "no panel stands below"
    assert [axes.get_ylabel() for axes in shown] == [
        "robust accuracy, %",
        "",
        "",
        "robust accuracy, %",
    ]


def kept(item: int, change: float, label: int, shape: tuple[int, int, int]) -> KeptImage:
    original = np.full(shape, 100 + item, np.uint8)
    adversarial = (original / 255).astype(np.float32)
    adversarial[0, 0, 0] += change
    return KeptImage(item, original, adversarial, 0, 0, 0.9, label, 0.7)


@pytest.fixture(params=[(1, 2, 3), (3, 2, 3)], ids=["grey", "colour"])
def pictures(request: pytest.FixtureRequest, world: World) -> tuple[World, Callable[[], Any]]:
    """Three stored images of pgd, of which the last two are adversarial, and two of fgsm."""
    world.defense("d")
    world.record(world.cell("d", CLEAN), outcomes(first(0), step=np.full(N, -1)))
    stored = {
        "pgd": (kept(0, 0.1, 0, request.param), kept(1, 0.2, 2, request.param),
                kept(2, -0.1, 1, request.param)),
        "fgsm": (kept(1, 0.05, 1, request.param), kept(3, 0.0, -1, request.param)),
    }  # fmt: skip
    for name, images in stored.items():
        world.record(world.cell("d", name), outcomes(first(3)), images=images)
    return world, lambda: request.param


def test_a_gallery_shows_clean_adversarial_and_difference(
    pictures: tuple[World, Callable[[], Any]],
) -> None:
    world, shape = pictures
    found = load_gallery(world.store, results_of(world), "d", ["pgd"], 2)
    assert found.heads == ("clean", "pgd", "difference x2.5")
    (clean, adversarial, change), (_, other, _) = found.rows
    assert (
        clean is not None and adversarial is not None and change is not None and other is not None
    )
    assert clean.pixels.shape == ((2, 3, 3) if shape()[0] == 3 else (2, 3))
    np.testing.assert_allclose(clean.pixels, 101 / 255, atol=1e-6)
    first_pixel = np.asarray(change.pixels).reshape(6, -1)[:, 0]
    np.testing.assert_allclose(first_pixel, [1, *[0.5] * 5], atol=1e-6)
    assert (clean.caption, adversarial.caption) == ("class 0 (90%)", "class 2 (70%)")
    assert other.caption == "class 1 (70%)" and other.color == adversarial.color != clean.color
    assert change.caption == "largest 0.200"


@pytest.mark.row("X15")
def test_the_pictures_of_a_row_add_up_to_the_adversarial_image(
    pictures: tuple[World, Callable[[], Any]],
) -> None:
    """x + eps d = x': the clean picture, the difference without its magnification, the result."""
    world, _ = pictures
    found = load_gallery(world.store, results_of(world), "d", ["pgd", "fgsm"], 4)
    added = 0
    for clean, *others in found.rows:
        assert clean is not None
        for adversarial, change in zip(others[::2], others[1::2], strict=True):
            assert (adversarial is None) == (change is None)
            if adversarial is not None and change is not None:
                difference = (change.pixels - 0.5) / found.magnification
                total = clean.pixels + difference
                np.testing.assert_allclose(total, adversarial.pixels, atol=1e-6)
                added += 1
    assert added == 5


def test_a_gallery_leaves_places_without_an_image_empty(
    pictures: tuple[World, Callable[[], Any]], tmp_path: Path
) -> None:
    world, _ = pictures
    found = load_gallery(world.store, results_of(world), "d", ["pgd", "fgsm"], 4)
    assert [[picture is not None for picture in row] for row in found.rows] == [
        [True, True, True, False, False], [True] * 5, [True, True, True, False, False],
        [True, False, False, True, True],
    ]  # fmt: skip
    assert found.rows[3][3] is not None and found.rows[3][3].caption == "no answer (70%)"
    out = tmp_path / "gallery.svg"
    assert plotted(world, "gallery", "--out", str(out)).exit_code == 0
    assert {"clean", "fgsm", "pgd", "class 2 (70%)"} <= set(svg_texts(out))


def test_a_gallery_without_the_asked_images_says_what_there_is(
    pictures: tuple[World, Callable[[], Any]],
) -> None:
    world, _ = pictures
    with pytest.raises(BenchError, match="there is no defense 'x' here; there are d"):
        load_gallery(world.store, results_of(world), "x", [], 1)
    world.attack("bim")
    world.evaluate("d", "bim", first(1))
    with pytest.raises(BenchError, match="no image of bim against d is stored; there are images"):
        load_gallery(world.store, results_of(world), "d", ["bim"], 1)

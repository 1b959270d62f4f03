"""Charts, tables and downloads: pure functions with known results."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.core.cards import AttackCard
from bench.core.outcomes import KeptImage
from bench.core.protocols import LeaderboardProtocol
from bench.core.statistics import Count, count_interval
from bench.results.defense_report import AccuracyCurve, RadiusPoint
from bench.results.detection import DetectorRoc
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import WARNING, MaskingCheck
from bench.results.matrix import MatrixCell
from bench.results.ranking import CertifiedCount
from leaderboard import chart_rows, charts, defense_tables, export, markup, reading, tables, words

BOARD = Leaderboard(
    name="digits-linf", id="0123", dataset="digits",
    set={"name": "Linf", "eps": "51/255", "radius": 0.2}, access="gradients",
    goal={"kind": "untargeted", "rule": ""}, budget={"gradients": None, "queries": None},
    summary="", protocol=LeaderboardProtocol(("pgd",)), order=1, examples="e" * 16, n=500,
    mode="full",
)  # fmt: skip


def square(state: str, k: int | None = None, **more: Any) -> MatrixCell:
    values: dict[str, Any] = {
        "defense": "d", "attack": "a", "state": state, "reason": "", "out_of_ball": 0,
        "fragile": 0, "forwards": 500, "gradients": 250, "seconds": 5.0, "items": 500,
        "items_done": 500, "robust": None if k is None else count_interval(k, 500), **more,
    }  # fmt: skip
    return MatrixCell(**values)


def spec(chart: charts.Chart) -> str:
    return json.dumps(chart.to_dict())


@pytest.mark.parametrize(
    ("k", "n", "shown"),
    [(310, 500, "62.0 %"), (0, 500, "0.0 %"), (6201, 10000, "62.01 %"), (1, 3, "33.3 %")],
)
def test_a_percentage_has_as_many_decimals_as_its_examples_support(
    k: int, n: int, shown: str
) -> None:
    assert words.format_count(count_interval(k, n)) == shown


def test_a_missing_figure_is_a_dash_and_not_zero() -> None:
    assert words.format_count(Count(0, 0, 0.0, 1.0)) == words.format_count(None) == "—"
    assert words.format_interval(None) == "no result"


def test_zero_of_n_has_an_upper_bound() -> None:
    assert words.format_interval(count_interval(0, 500)) == "0.0–0.8 %, 0/500"  # noqa: RUF001


def test_the_pareto_front_has_the_rows_that_no_other_row_exceeds_in_both() -> None:
    rows = [
        {"defense": "a", "clean": 0.9, "robust": 0.5},
        {"defense": "b", "clean": 0.8, "robust": 0.6},
        {"defense": "c", "clean": 0.8, "robust": 0.4},
        {"defense": "d", "clean": 0.7, "robust": 0.6},
    ]
    assert [row["defense"] for row in charts.pareto_front(rows)] == ["a", "b"]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_names_are_separated_and_never_below_their_point(heights: list[float]) -> None:
    lifted = chart_rows.spread_heights(heights, 0.05)
    assert all(new >= old for new, old in zip(lifted, heights, strict=True))
    gaps = np.diff(sorted(lifted))
    assert (gaps >= 0.05 - 1e-9).all()


def test_a_curve_of_steps_starts_at_clean_accuracy_and_ends_at_the_last_step() -> None:
    curve = AccuracyCurve(np.array([0.0, 3.0, 7.0]), np.array([9, 5, 4]), 10)
    drawn = chart_rows.accuracy_rows({"pgd": curve}, None)
    assert [(row["step"], row["accuracy"]) for row in drawn] == [(0, 0.9), (3, 0.5), (7, 0.4)]
    assert [row["end"] for row in drawn] == [False, False, True]


@pytest.mark.parametrize(("last", "dot"), [(603.0, 603.0), (60.0, 100.0)])
def test_the_dot_is_the_last_success_or_the_later_end_of_a_restart(last: float, dot: float) -> None:
    """Nine restarts of 100 steps: the last success at 603 is not the end of a restart."""
    card = AttackCard(name="apgd-t", origin="built-in", steps=100)
    curve = AccuracyCurve(np.array([0.0, last]), np.array([9, 5]), 10)
    (end,) = (
        row for row in chart_rows.accuracy_rows({"apgd-t": curve}, {"apgd-t": card}) if row["end"]
    )
    assert end["step"] == dot
    for said in ("the last success, or the end of the first restart", "several restarts"):
        assert said in charts.STEPS_CAPTION


def test_a_long_curve_keeps_its_ends_and_few_points() -> None:
    curve = AccuracyCurve(np.arange(5000.0), np.arange(5000, 0, -1), 5000)
    drawn = chart_rows.accuracy_rows({"pgd": curve}, None)
    assert len(drawn) <= chart_rows.MAX_POINTS
    assert (drawn[0]["accuracy"], drawn[-1]["accuracy"]) == (1.0, 1 / 5000)


def test_a_fixed_radius_is_a_point_and_not_part_of_a_line() -> None:
    curve = AccuracyCurve(np.array([0.0, 0.1]), np.array([9, 5]), 10)
    drawn = chart_rows.radius_rows({"deepfool": curve}, [])
    assert {row["kind"] for row in drawn} == {"smallest distance"}
    layers = charts.radius_chart(drawn, "radius", 0.2).to_dict()["layer"]
    line = next(layer for layer in layers if layer["mark"]["type"] == "line")
    assert "smallest distance" in json.dumps(line["transform"])


def test_a_roc_curve_rises_and_marks_the_threshold() -> None:
    many = np.linspace(0, 1, 1000)
    drawn = chart_rows.roc_rows({"pgd": DetectorRoc(many, np.sqrt(many), (0.04, 0.2))})
    line = [row for row in drawn if not row["here"]]
    assert len(line) <= chart_rows.MAX_POINTS
    assert (line[0]["clean"], line[-1]["clean"]) == (0, 1)
    assert [row["at"] for row in line] == sorted(row["at"] for row in line)
    (mark,) = (row for row in drawn if row["here"])
    assert (mark["clean"], mark["attacked"]) == (0.04, 0.2)
    assert mark["words"] == "20.0 % at 4.0 %, at its threshold"
    assert "clean images rejected" in spec(charts.roc_chart(drawn))


def test_certified_accuracy_is_below_robust_accuracy_at_the_same_radius() -> None:
    proof = CertifiedCount("smoothing", exact=False, error=0.001, count=count_interval(3, 10))
    point = RadiusPoint("1/10", 0.1, count_interval(6, 10), proof, "near", complete=True)
    attacked, certified = chart_rows.radius_rows({}, [point])
    assert attacked["eps"] == certified["eps"] and certified["accuracy"] < attacked["accuracy"]
    assert "by smoothing, each wrong with probability at most 0.001" in certified["words"]


def test_every_tile_shows_its_number_or_its_state() -> None:
    found = [square("done", 310), square("failed"), square("not applicable"), square("running")]
    tiles = chart_rows.matrix_tiles(found, chart_rows.FULL_MODE_METRICS[chart_rows.ACCURACY_NAME])
    assert [tile["shown"] for tile in tiles] == ["62.0", "failed", "n/a", "running 500/500"]
    assert [tile["value"] for tile in tiles] == [0.62, None, None, None]


def test_a_tile_of_a_cascade_shows_how_many_examples_its_attack_met() -> None:
    cascade = Leaderboard(**{**vars(BOARD), "mode": "rank"})
    (metric, *_) = chart_rows.cell_metrics(cascade).values()
    found = [square("done", 310, attack="first"), square("done", 0, attack="last")]
    found[1] = replace(found[1], robust=count_interval(0, 0))
    assert [tile["shown"] for tile in chart_rows.matrix_tiles(found, metric)] == [
        "310 of 500",
        "none left",
    ]
    assert chart_rows.attack_columns(cascade, found) == ["first", "last"]
    assert chart_rows.attack_columns(cascade, found[::-1]) == ["last", "first"], (
        "in the order of the leaderboard"
    )
    assert chart_rows.ACCURACY_NAME not in chart_rows.cell_metrics(cascade)


def test_a_missing_figure_is_not_drawn_as_zero() -> None:
    tiles = chart_rows.matrix_tiles(
        [square("failed", gradients=None)],
        chart_rows.FULL_MODE_METRICS["gradient evaluations per example"],
    )
    assert tiles[0]["value"] is None
    assert (
        chart_rows.matrix_tiles(
            [square("done")], chart_rows.FULL_MODE_METRICS["gradient evaluations per example"]
        )[0]["value"]
        == 0.5
    )


def test_attacks_are_ordered_by_robust_accuracy() -> None:
    found = [
        square("done", 100, attack="weak"), square("done", 50, attack="strong"),
        square("missing", attack="absent"),
    ]  # fmt: skip
    assert chart_rows.strongest_first(found) == ["strong", "weak", "absent"]


@pytest.mark.parametrize(
    ("states", "stays"),
    [
        (("done", "missing"), True), (("running",), True), (("failed", "missing"), True),
        (("missing", "not applicable", "skipped"), False),
    ],
)  # fmt: skip
def test_an_attack_without_a_result_has_no_column(states: tuple[str, ...], stays: bool) -> None:
    found = [square("done", 1, attack="known"), *(square(state, attack="a") for state in states)]
    assert chart_rows.evaluated_attacks(["known", "a"], found) == (
        ["known", "a"] if stays else ["known"]
    )


def test_without_any_result_every_attack_has_a_column() -> None:
    assert chart_rows.evaluated_attacks(
        ["a", "b"], [square("missing"), square("skipped", attack="b")]
    ) == ["a", "b"]


@pytest.mark.parametrize(("name", "angle"), [("pgd", 0), ("foolbox-hop-skip-jump-linf", -35)])
def test_names_above_the_matrix_are_slanted_before_they_overlap(name: str, angle: int) -> None:
    columns = [f"{name}-{number}" for number in range(charts.MAX_CHART_COLUMNS)]
    drawn = charts.matrix_chart([], ["d"], columns, chart_rows.ACCURACY_NAME, 1.0).to_dict()
    (axis,) = {json.dumps(layer["encoding"]["x"]["axis"]) for layer in drawn["layer"]}
    assert json.loads(axis)["labelAngle"] == angle


@pytest.mark.parametrize(("attacks", "lines"), [(1, 1), (3, 1), (4, 2), (21, 7)])
def test_the_height_of_a_plot_does_not_depend_on_its_legend(attacks: int, lines: int) -> None:
    rows = [{"attack": f"a{i}", "step": 1.0, "accuracy": 1.0, "end": True, "words": ""}
            for i in range(attacks)]  # fmt: skip
    drawn = charts.steps_chart(rows, "steps").to_dict()
    assert drawn["height"] - lines * charts.LEGEND_LINE_HEIGHT == charts.PLOT_HEIGHT


def test_hostile_text_is_only_data_of_a_chart() -> None:
    hostile = "![x](http://evil.example/x.png)"
    tile = chart_rows.matrix_tiles(
        [square("done", 1, defense=hostile)], chart_rows.FULL_MODE_METRICS[chart_rows.ACCURACY_NAME]
    )
    drawn = charts.matrix_chart(tile, [hostile], ["a"], chart_rows.ACCURACY_NAME, 1.0).to_dict()
    assert {t["title"] for t in drawn["layer"][0]["encoding"]["tooltip"]} & {
        "image",
        "href",
    } == set()
    assert '"href"' not in json.dumps(drawn["layer"]) and '"url"' not in json.dumps(drawn["layer"])


@given(st.text())
def test_no_text_opens_a_tag_or_an_attribute(said: str) -> None:
    safe = markup.text(said)
    assert not set(safe) & set("<>\"'")
    assert "\n" not in safe and "\u202e" not in safe


def test_long_text_is_cut() -> None:
    assert len(words.plain_text("x" * 10_000)) == words.MAX_TEXT
    assert len(markup.reason("x" * 10_000)) == words.MAX_REASON


def test_evidence_is_not_cut() -> None:
    said = " ".join(f"attack-{number}" for number in range(60))
    assert words.MAX_TEXT < len(said) < words.MAX_REASON
    assert said in tables.checks_table([MaskingCheck("a-check", WARNING, said)], ())


def test_links_lead_to_pages_of_this_site() -> None:
    assert 'href="/defense?name=a%26b%2F%2F' in markup.link(
        "defense", markup.text("x"), name="a&b//"
    )
    assert 'href="/?threat=t"' in markup.link("", markup.text("x"), threat="t")


def test_a_picture_has_the_pixels_of_its_image() -> None:
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(markup.png(pixels)))))
    assert (np.moveaxis(read, -1, 0) == pixels).all()
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(markup.png(pixels[:1] / 255)))))
    assert (grey == pixels[0]).all()


def test_the_perturbation_is_magnified_by_the_printed_factor() -> None:
    original = np.full((1, 2, 2), 100, np.uint8)
    adversarial = (original / 255).astype(np.float32)
    adversarial[0, 0, 0] += 0.09
    shown, factor = markup.magnified_perturbation(original, adversarial)
    assert factor == 5
    assert shown[0, 0, 0] == pytest.approx(0.95, abs=1e-5)
    assert shown[0, 1, 1] == pytest.approx(0.5, abs=1e-5)


def test_the_whole_perturbation_is_visible() -> None:
    original = np.zeros((1, 2, 2), np.uint8)
    adversarial = np.array([[[1.0, 0.3], [0.0, 0.7]]], np.float32)
    shown, _ = markup.magnified_perturbation(original, adversarial)
    assert shown.min() >= 0 and shown.max() <= 1


@given(st.integers(0, 255), st.sampled_from([0.0, 1e-7, -5e-7]))
def test_rounding_is_no_perturbation(grey: int, noise: float) -> None:
    original = np.full((1, 2, 2), grey, np.uint8)
    adversarial = original.astype(np.float32) / np.float32(255) + np.float32(noise)
    shown, factor = markup.magnified_perturbation(original, adversarial)
    assert factor == 1 and (shown == 0.5).all()
    said = defense_tables.example_pictures(
        [KeptImage(0, original, adversarial, 1, 2, 0.9, 2, 0.9)], "0123456789"
    )
    assert "No perturbation" in said and "×" not in said  # noqa: RUF001


def test_a_small_perturbation_is_not_rounded_away() -> None:
    original = np.full((1, 2, 2), 77, np.uint8)
    adversarial = original.astype(np.float32) / np.float32(255)
    adversarial[0, 0, 0] += np.float32(1e-4)
    _, factor = markup.magnified_perturbation(original, adversarial)
    assert factor == pytest.approx(5000, rel=0.01)
    said = defense_tables.example_pictures(
        [KeptImage(0, original, adversarial, 1, 2, 0.9, 2, 0.9)], "0123456789"
    )
    assert "largest 0.0001" in said


def test_downloads_hold_no_spreadsheet_formulas() -> None:
    lines = export.as_csv([{"defense": "=1+1", "k": -3}, {"defense": "@x", "k": None}]).splitlines()
    assert lines == ["defense,k", "'=1+1,-3", "'@x,"]


def test_json_has_its_schema_and_the_rules() -> None:
    said = json.loads(export.as_json(BOARD, "matrix", [square("done", 310)]))
    assert said["schema"] == 2 and said["leaderboard"]["set"]["eps"] == "51/255"
    assert said["matrix"][0]["robust"]["k"] == 310


def test_leaderboards_of_one_threat_model_have_different_labels() -> None:
    small = Leaderboard(**{**vars(BOARD), "n": 100, "examples": "f" * 16})
    cascade = Leaderboard(**{**vars(small), "mode": "rank"})
    fast = Leaderboard(**{**vars(small), "mode": "fast"})
    labels = words.leaderboards_by_label([BOARD, small, cascade, fast])
    assert list(labels) == [
        "digits-linf", "digits-linf (100 examples)", "digits-linf in rank mode",
        "digits-linf by the suite fast",
    ]  # fmt: skip
    assert list(labels.values()) == [BOARD, small, cascade, fast]


def test_the_page_of_the_suite_fast_says_that_its_ranks_are_its_own() -> None:
    note = str(tables.mode_note(Leaderboard(**{**vars(BOARD), "mode": "fast"})))
    assert "an upper bound on what standard would still break" in note
    assert "never mixed" in note
    assert str(tables.mode_note(BOARD)) == ""


def test_results_are_read_again_when_the_file_changes(tmp_path: Any) -> None:
    file = tmp_path / "x.db"
    url = f"sqlite:///{file}"
    before = reading.database_stamp(url)
    file.write_text("a")
    middle = reading.database_stamp(url)
    file.with_name("x.db-wal").write_text("b")
    assert len({before, middle, reading.database_stamp(url)}) == 3

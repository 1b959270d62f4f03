"""The table of corruptions in the report, for papers and on the page of a defense."""

from __future__ import annotations

import csv
import io

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.core.corruptions import CORRUPTION_ATTACKS, CORRUPTIONS, SEVERITIES, corruption_of
from bench.core.errors import BenchError
from bench.core.statistics import count_interval
from bench.results.corruption_rows import corruption_rows, corruption_table, mean_shares
from bench.results.json_report import json_report
from leaderboard.defense_tables import corruptions_by_severity
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, enter, matrix_of, ranking_of, shown_text

CLEAN = count_interval(90, 100)
SET = {"name": "corruption", "eps": "1", "radius": 1.0}


def broken_by(attack: str) -> int:
    """A number of broken examples that no other attack has."""
    return 1 + 2 * CORRUPTION_ATTACKS.index(attack)


@pytest.fixture
def corrupted_world(world: World) -> World:
    """The defense `d` under every corruption, and `e` under one."""
    world.threat("digits-corruptions", *CORRUPTION_ATTACKS, set=SET, ranked=False, access="nothing")
    for name in CORRUPTION_ATTACKS:
        world.attack(name, needs="nothing", steps=1)
    for name in ("d", "e"):
        world.defense(name)
        world.clean(name, ALL)
    for name in CORRUPTION_ATTACKS:
        world.evaluate("d", name, first(broken_by(name)), threat="digits-corruptions")
    world.evaluate("e", "rain", first(5), threat="digits-corruptions")
    return world


def test_a_figure_stands_under_its_severity_and_a_mean_needs_all_corruptions() -> None:
    robust = {
        "fog[severity=2]": count_interval(50, 100),
        "fog": count_interval(20, 100),
        "pgd": CLEAN,
    }
    (fog,) = corruption_rows(CLEAN, robust)
    assert fog.kind == "fog"
    assert [count and count.k for count in fog.counts] == [90, None, 50, None, None, 20]
    assert set(mean_shares([fog])) == {None}
    every = {name: count_interval(10 * (corruption_of(name) or ("", 0))[1], 100)
             for name in CORRUPTION_ATTACKS}  # fmt: skip
    rows = corruption_rows(CLEAN, every)
    assert [row.kind for row in rows] == list(CORRUPTIONS)
    assert mean_shares(rows) == pytest.approx((0.9, 0.1, 0.2, 0.3, 0.4, 0.5))
    every["rain[severity=3]"] = None  # type: ignore[assignment]
    assert [share is None for share in mean_shares(corruption_rows(CLEAN, every))] == [
        False, False, False, True, False, False,
    ]  # fmt: skip
    assert corruption_rows(CLEAN, {"pgd": CLEAN}) == [] == list(mean_shares([]))


def test_the_report_has_one_row_for_each_defense_and_corruption(corrupted_world: World) -> None:
    report = json_report(corrupted_world.store, "digits-corruptions")
    table = corruption_table(report)
    mine = [row for row in table.rows if row[0] == "d"]
    assert [row[1] for row in mine] == [*CORRUPTIONS, "mean"]
    fog = next(row for row in mine if row[1] == "fog")
    expected = [600 - broken_by(f"fog[severity={s}]") for s in range(1, SEVERITIES)]
    assert [cell.k for cell in fog[2:]] == [600, *expected, 600 - broken_by("fog")]  # type: ignore[union-attr]
    (rain,) = [row for row in table.rows if row[0] == "e"]
    assert rain[1] == "rain" and rain[3:7] == ("-",) * 4
    assert all(row.rank is None for row in ranking_of(corrupted_world.store, "digits-corruptions"))


def test_text_and_csv_show_the_same_figures(corrupted_world: World) -> None:
    assert "not adversarial" in shown_text(corrupted_world)
    words = ["report", "--threat", "digits-corruptions", "--table", "corruptions"]
    url = corrupted_world.store.url
    called = CliRunner().invoke(app, [*words, "--format", "csv", "--db", url])
    rows = list(csv.DictReader(io.StringIO(called.stdout)))
    assert len(rows) == len(CORRUPTIONS) + 1, "the mean is no count and is left out"
    jpeg = next(row for row in rows if (row["defense"], row["corruption"]) == ("d", "jpeg"))
    assert int(jpeg["3_k"]) == 600 - broken_by("jpeg[severity=3]")


def test_another_leaderboard_has_no_such_table(world: World) -> None:
    enter(world, "d", ALL, first(3))
    with pytest.raises(BenchError, match="linf has no corruptions; evaluate them with"):
        corruption_table(json_report(world.store, "linf"))


def test_the_page_of_a_defense_shows_every_figure(corrupted_world: World) -> None:
    (row,) = [
        r for r in ranking_of(corrupted_world.store, "digits-corruptions") if r.defense == "d"
    ]
    cells = [c for c in matrix_of(corrupted_world.store, "digits-corruptions") if c.defense == "d"]
    shown = corruptions_by_severity(row.clean, cells)
    assert all(f"{600 - broken_by(name)}/600" in shown for name in CORRUPTION_ATTACKS)
    assert corruptions_by_severity(row.clean, []) == ""

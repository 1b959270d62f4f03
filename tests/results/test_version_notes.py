"""What rows state about their versions, in reports and pages alike."""

from __future__ import annotations

from bench.core.cells import Culprit, Failure
from bench.results.defense_report import defense_report
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard
from bench.results.version_notes import apart_sentence
from leaderboard import tables
from tests.fixtures.small_store import World, first
from tests.results.small_results import (
    FIVE,
    change_all,
    matrix_of,
    rows_of,
    sentences,
    shown_text,
)  # fmt: skip


def test_ranking_matrix_report_and_pages_show_the_same_versions(five: World) -> None:
    change_all(five, "2")
    five.evaluate("d", "a1", first(300))
    cell = five.cell("d", "a2")
    five.plan(cell)
    lease = five.store.lease(cell.key, "away@another-host")
    assert lease is not None
    five.store.fail(lease, Failure(Culprit.PLUGIN, "It divided by zero."))
    row = rows_of(five)["d"]
    cells = {one.attack: one for one in matrix_of(five.store)}
    assert {one.robust.k for one in cells.values() if one.robust} == {row.robust.k} == {500}
    assert "an older version of the attack" in cells["a1"].reason
    assert cells["a2"].reason.endswith("With the present one it failed: It divided by zero.")
    report = defense_report(five.store, find_leaderboard(five.store, "linf"), "d")
    assert report.row == row and list(report.cells) == list(cells.values())
    (told,) = json_report(five.store)["ranking"]
    assert row.versions is not None
    assert told["versions"]["sentences"] == row.versions.sentences
    assert set(told["versions"]["attacks"]) == set(FIVE)
    assert row.versions.date in sentences(row)
    for page in (tables.unranked_list([row]), tables.version_note(row)):
        assert "1 of 5 required attacks evaluated with newer code" in page
    assert "1 of 5 required attacks evaluated with newer code" in shown_text(five)


def test_rows_of_the_same_versions_are_named_together() -> None:
    assert apart_sentence({"a": (), "b": ()}) == ""
    found = apart_sentence({"a": ("c",), "b": ("c",), "c": ("a", "b"), "d": ()})
    assert found.endswith("never called tied: a, b; c.")

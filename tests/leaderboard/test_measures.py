"""The measures on the page of a defense and in the snapshot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.core.machines import Machine
from bench.core.outcomes import Refusals
from bench.core.statistics import count_interval
from bench.results.defense_report import DefenseReport, defense_report
from bench.results.leaderboards import find_leaderboard
from bench.results.measures import AttackCost, SourceTarget, TargetedSuccess
from bench.store import Store
from leaderboard import measure_tables, words
from leaderboard.snapshot import write_snapshot
from tests.leaderboard.conftest import Visit
from tests.leaderboard.test_pages import html


@pytest.fixture(scope="module")
def report(example_url: str) -> DefenseReport:
    with Store.open(example_url, read_only=True) as store:
        return defense_report(store, find_leaderboard(store, "digits-linf"), "undefended")


def test_the_page_of_a_defense_shows_its_measures(
    example_url: str, report: DefenseReport, visit: Visit
) -> None:
    said = html(visit(example_url, "defense", name="undefended", threat="digits-linf"))
    correct, drop, risk = report.robust_on_correct, report.measures.confidence, report.measures.risk
    assert drop is not None and risk is not None and report.separation is not None
    assert f"{correct.k}/{correct.n}" in said
    assert f"{100 * drop.before:.0f} % → {100 * drop.after:.0f} %" in said
    assert f"{risk.clean:.2f} → {risk.adversarial:.2f}" in said
    assert "First-order gap" in said and "Top-5 error" in said
    assert report.separation.sentence in said


def test_the_snapshot_shows_the_same_measures(
    example_url: str, report: DefenseReport, tmp_path: Path
) -> None:
    write_snapshot(example_url, tmp_path)
    page = (tmp_path / "defense-undefended.html").read_text()
    assert "Measures under digits-linf" in page
    assert measure_tables.measure_tiles(report) in page


def test_the_diagonal_of_the_matrix_is_empty_and_the_counts_are_in_place() -> None:
    pairs = (SourceTarget(0, 1, 3, 7), SourceTarget(2, 0, 5, 9))
    found = TargetedSuccess(True, count_interval(8, 16), pairs)
    table = measure_tables.target_table(found, ("a", "b", "c"))
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    plain = [[re.sub("<[^>]*>", "", cell) for cell in row] for row in rows]
    assert plain == [["a", "", "3", "—"], ["b", "—", "", "—"], ["c", "5", "—", ""]]
    assert 'title="3 of 7"' in table and "declared target class" in table


def test_many_classes_are_a_list_of_the_most_frequent_pairs() -> None:
    pairs = tuple(SourceTarget(i, 0, i, 20) for i in range(1, 20))
    names = tuple(f"class {i}" for i in range(20))
    table = measure_tables.target_table(TargetedSuccess(False, None, pairs), names)
    assert table.index("class 19") < table.index("class 18")
    assert "class 4<" not in table and "most frequent 15 of 19 pairs" in table


def test_a_hostile_class_name_is_escaped() -> None:
    found = TargetedSuccess(False, None, (SourceTarget(0, 1, 1, 1),))
    table = measure_tables.target_table(found, ("<script>", "b"))
    assert "<script>" not in table and "&lt;script&gt;" in table


def test_what_is_not_measured_is_left_out() -> None:
    assert measure_tables.target_table(None, ("a", "b")) == ""
    assert measure_tables.target_table(TargetedSuccess(False, None, ()), ("a", "b")) == ""
    assert measure_tables.confidence_table(None) == ""
    assert measure_tables.cost_table(()) == ""


def test_the_costs_are_added_up() -> None:
    table = measure_tables.cost_table((AttackCost("b", 0.5, 3, 2), AttackCost("a", 0.25, 1, 0)))
    assert table.index(">b<") < table.index(">a<") and "0.75 s over all attacks" in table


def test_refusals_are_words_with_their_reasons() -> None:
    assert words.refused(None) == "—"
    assert words.refused(Refusals(0, 0, 0, None)) == words.refused(Refusals(0, 0, 0, 0)) == "0"
    said = words.refused(Refusals(norm=2, box=1, not_finite=0, not_adversarial=4))
    assert said == "7: 2 outside the set, 1 outside [0, 1], 4 not adversarial"


def test_the_page_of_a_defense_names_what_a_second_evaluation_found(
    example_url: str, visit: Visit, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'copy.db'}"
    with Store.open(example_url, read_only=True) as store:
        store.backup(tmp_path / "copy.db")
    with Store.open(url) as store:
        row = next(
            row
            for row in store.cells("digits-linf", mode="full")
            if (row.cell.defense, row.cell.attack) == ("undefended", "pgd") and row.figures
        )
        first = store.outcomes(row.key)
        verdict = first.verdict.copy()
        verdict[2] = 1 - verdict[2]
        other = Machine("cpu", "DEFAULT", "2.9.1", 1)
        store.insert_replication(row.key, other, first._replace(verdict=verdict))
    said = html(visit(url, "defense", name="undefended", threat="digits-linf"))
    counted = f"1 of {len(verdict)} verdicts differs: item 2: "
    assert f"again on {other.sentence}: {counted}" in said
    assert "again on" not in html(
        visit(example_url, "defense", name="undefended", threat="digits-linf")
    )

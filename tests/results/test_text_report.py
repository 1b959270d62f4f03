"""The report on a terminal: at every width words and figures are printed whole."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.core.cells import CLEAN, CellState, Culprit, Failure
from bench.core.machines import Machine
from bench.core.outcomes import Verdict
from bench.results import second_evaluations
from bench.results.json_report import json_report
from bench.results.text_report import text_report
from bench.results.text_table import BlockTable, TextColumn, wrap
from bench.threats.suites import Suite
from tests.fixtures.small_store import World, first, outcomes, some
from tests.results.small_results import ALL, NONE, enter

LONG = "a-defense-whose-name-is-as-long-as-names-may-get"


def printed(report: dict[str, Any], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(text_report(report))
    return captured.get()


def report_text(world: World, width: int, mode: str = "full") -> str:
    return printed(json_report(world.store, None, mode), width)


def evaluate_many(world: World, attacks: int, *defenses: str) -> list[str]:
    """Every attack against every defense, no two with the same figure."""
    names = [f"an-attack-with-a-name-{number}" for number in range(attacks)]
    for name in names:
        world.attack(name)
    figures = []
    for position, defense in enumerate(defenses):
        world.defense(defense)
        world.clean(defense, ALL)
        for number, name in enumerate(names):
            broken = 1 + number + position * attacks
            world.evaluate(defense, name, first(broken))
            figures.append(f"{600 - broken}/600")
    return figures


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_figure_is_printed_whatever_the_width(world: World, width: int) -> None:
    figures = evaluate_many(world, 25, "d", "e", LONG)
    text = report_text(world, width).partition("Robust examples by attack")[2].split()
    assert [figure for figure in figures if figure not in text] == []


def test_names_are_whole_at_80_columns(world: World) -> None:
    evaluate_many(
        world, 12, "d", "some-defense", "another-defense", "a-third-defense", "a-fourth-defense"
    )
    text = report_text(world, 80).partition("Robust examples by attack")[2]
    assert text.count("an-attack-with-a-name-11 ") > 1, "in each block"
    assert all(name in text for name in ("another-defense", "a-fourth-defense"))
    assert max(map(len, text.splitlines())) <= 80


def test_the_longer_list_of_names_is_in_rows(world: World) -> None:
    evaluate_many(world, 2, *(f"d{number}" for number in range(9)))
    assert any(line.split()[0:1] == ["d8"] for line in report_text(world, 80).splitlines())
    evaluate_many(world, 12, "e")
    lines = report_text(world, 80).splitlines()
    assert any(line.split()[0:1] == ["an-attack-with-a-name-11"] for line in lines)


def test_attacks_that_were_not_evaluated_are_counted_and_left_out(world: World) -> None:
    evaluate_many(world, 1, "d")
    for name in ("unmet-1", "unmet-2"):
        world.attack(name)
        world.plan(world.cell("d", name), CellState.NOT_APPLICABLE)
    world.attack("broken-down")
    world.plan(world.cell("d", "broken-down"))
    lease = world.store.lease(world.cell("d", "broken-down").key, "away@another-host")
    assert lease is not None
    world.store.fail(lease, Failure(Culprit.PLUGIN, "It gave NaN."))
    text = report_text(world, 80)
    assert "unmet" not in text
    assert "Left out: 4 attacks that no defense was evaluated with." in text, (
        "fgsm and pgd are required"
    )
    assert "broken-down" in text and "failed" in text


def test_without_any_evaluated_cell_every_attack_is_printed(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    world.plan(world.cell("d", "fgsm"))
    text = report_text(world, 80)
    assert "missing" in text and "Left out" not in text


@pytest.fixture
def full(world: World) -> dict[str, Any]:
    """A report with ranks, ties, warnings, detectors, notes, a suite and cells without a figure."""
    world.attack("random-noise-with-a-long-name", "nothing", steps=1, samples=True)
    world.attack("square-with-many-restarts", "scores", steps=400)
    for number, name in enumerate(("undefended", "adversarial-training", "bit-depth", LONG)):
        world.defense(name, rejects=0.05)
        rejection = np.where(np.arange(600) < 30 + number, 0.5, -1.0)
        clean = outcomes(
            some(600, *range(number + 3)), rejection=rejection, step=np.full(600, -1),
            distance=np.zeros(600),
        )  # fmt: skip
        world.record(world.cell(name, CLEAN), clean)
        world.evaluate(name, "fgsm", first(40 + number), rejection=rejection)
        world.evaluate(name, "pgd", first(61 + number), rejection=rejection)
        world.evaluate(name, "random-noise-with-a-long-name", first(110 + number))
        if number:
            world.evaluate(name, "square-with-many-restarts", first(120 + number))
        else:
            skipped = world.cell(name, "square-with-many-restarts")
            world.plan(skipped, CellState.NOT_APPLICABLE, "It has no scores.")
    suite = Suite("standard", {"Linf": ("fgsm", "pgd")}, "", "")
    return json_report(world.store, None, "full", suite)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_word_is_broken_and_no_figure_hidden(full: dict[str, Any], width: int) -> None:
    text = printed(full, width)
    tokens = text.split()
    assert max(map(len, text.splitlines())) <= width
    headings = (
        "Rank Defense Clean Ranked Robust 95 % Strongest Done Verdict standard Attack AUC"
        " Attacked Fooled, Fooled accepted Check Evidence"
    )
    assert [word for word in headings.split() if word not in tokens] == []
    rows, cells = full["ranking"], full["matrix"]
    names = {row["defense"] for row in rows} | {cell["attack"] for cell in cells}
    assert [name for name in sorted(names) if name not in tokens] == []
    counts = [row[name] for row in rows for name in ("clean", "robust", "robust_required")]
    counts += [row["suite"]["robust"] for row in rows]
    counts += [cell["robust"] for cell in cells if cell["robust"]]
    found = [cell["detection"] for cell in cells if cell["detection"]]
    counts += [one[name] for one in found for name in ("rejected", "fooled", "passed")]
    figures = Counter(f"{count['k']}/{count['n']}" for count in counts)
    figures.update(f"{one['auc']:.3f}" for one in found)
    figures.update(f"{100 * r['robust']['low']:.1f}-{100 * r['robust']['high']:.1f}" for r in rows)
    printed_figures = Counter(tokens)
    assert {f: n for f, n in figures.items() if printed_figures[f] < n} == {}
    warnings = [flag for row in rows for flag in row["flags"] if flag["state"] == "raised"]
    assert warnings and found
    for flag in warnings:
        words = [flag["name"], *flag["evidence"].split()]
        assert [word for word in words if word not in tokens] == []


def test_columns_that_do_not_fit_continue_below_with_their_keys() -> None:
    columns = [TextColumn("Name", "left"), *(TextColumn(f"c{i}") for i in range(4))]
    table = BlockTable("T", columns, [("some-name", *("1000000/1000000",) * 4)])
    assert table.blocks(table.widths(200), 200) == [[1, 2, 3, 4]]
    assert table.blocks(table.widths(50), 50) == [[1, 2], [3, 4]]
    assert table.widths(50) == [9, 15, 15, 15, 15]


def test_sentences_wrap_before_columns_move() -> None:
    columns = [TextColumn("Name", "left"), TextColumn("n"), TextColumn("Text", "left")]
    table = BlockTable("T", columns, [("some-name", "5 of 6", "a sentence of several words " * 3)])
    name, figure, text = table.widths(50)
    assert (name, figure) == (9, 6) and name + figure + text + 7 == 50
    assert table.blocks(table.widths(50), 50) == [[1, 2]]


def test_a_text_breaks_at_spaces_then_at_hyphens_then_anywhere() -> None:
    assert wrap("one-two three", 9) == "one-two\nthree"
    assert wrap("one-two-three", 8) == "one-two-\nthree"
    assert wrap("abcdefgh", 3) == "abc\ndef\ngh"


def test_refused_candidates_are_shown_by_reason(world: World) -> None:
    """The text report did not show them, and one figure held all reasons."""
    world.defense("d")
    world.clean("d", ALL)
    verdict = np.zeros(600, np.uint8)
    verdict[:6] = [Verdict.OUT_OF_BALL] * 3 + [Verdict.OUT_OF_BOX] * 2 + [Verdict.NOT_FINITE]
    claimed = some(600, 0, 8, 9, 10, 11)
    world.evaluate("d", "fgsm", first(0), verdict=verdict, claimed=claimed)
    world.evaluate("d", "pgd", first(5))
    report = json_report(world.store)
    cells = {cell["attack"]: cell for cell in report["matrix"]}
    assert cells["fgsm"]["refusals"] == {
        "norm": 3, "box": 2, "not_finite": 1, "not_adversarial": 4,
    }  # fmt: skip
    assert (cells["fgsm"]["out_of_ball"], cells["pgd"]["out_of_ball"]) == (3, 0)
    text = printed(report, 100).partition("Candidates that the referee refused")[2]
    text = text.partition("No attack was written")[0]
    assert text.split()[-6:] == ["d", "fgsm", "3", "2", "1", "4"]


@pytest.mark.parametrize("verdict", [Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX, Verdict.NOT_FINITE])
def test_each_reason_of_refusal_counts_alone(world: World, verdict: Verdict) -> None:
    """Right: `out_of_ball` counts the first reason only; all three were counted as one."""
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "fgsm", first(0), verdict=np.where(first(7), verdict, Verdict.ROBUST))
    report = json_report(world.store)
    (cell,) = (cell for cell in report["matrix"] if cell["attack"] == "fgsm")
    counts = [7 * (verdict == each) for each in (
        Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX, Verdict.NOT_FINITE,
    )]  # fmt: skip
    assert [cell["refusals"][name] for name in ("norm", "box", "not_finite")] == counts
    assert cell["out_of_ball"] == counts[0]
    text = printed(report, 100).partition("Candidates that the referee refused")[2]
    row = text.partition("No attack was written")[0].split()[-6:]
    assert row == ["d", "fgsm", *map(str, counts), "0"]


def test_without_refused_candidates_there_is_no_table_of_them(world: World) -> None:
    enter(world, "d", ALL, first(3), first(5))
    assert "refused" not in report_text(world, 100)


def test_results_of_two_machine_classes_are_told_apart(world: World) -> None:
    one, two = Machine("cpu", "AVX2", "2.9.1", 1), Machine("cpu", "DEFAULT", "2.9.1", 1)
    world.machine = one
    enter(world, "d", ALL, first(3))
    assert "Machine classes" not in report_text(world, 100)
    world.machine = two
    world.evaluate("d", "pgd", first(5))
    report = json_report(world.store)
    found = {cell["attack"]: cell["machines"] for cell in report["matrix"]}
    assert found == {"fgsm": (one.sentence,), "pgd": (two.sentence,)}
    assert [(m["cpu_capability"], m["cells"]) for m in report["machines"]] == [
        ("AVX2", 2), ("DEFAULT", 1),
    ]  # fmt: skip
    text = printed(report, 100)
    assert "cpu, AVX2, torch 2.9.1, 1 thread (2 cells)" in text
    assert "cpu, DEFAULT, torch 2.9.1, 1 thread (1 cells)" in text


def test_a_second_evaluation_that_disagrees_names_its_items_and_margins(world: World) -> None:
    one, two = Machine("cpu", "AVX2", "2.9.1", 1), Machine("cpu", "DEFAULT", "2.9.1", 1)
    world.machine = one
    enter(world, "d", ALL, first(3), first(5))
    assert "Second evaluations" not in report_text(world, 100)
    assert second_evaluations.second_evaluations(world.store, {}) == {}
    before = json_report(world.store)
    rows = {row.cell.attack: row for row in world.store.cells()}
    for attack in ("fgsm", "pgd"):
        found = world.store.outcomes(rows[attack].key)
        world.store.insert_replication(rows[attack].key, one, found)
        world.store.insert_replication(rows[attack].key, two, outcomes(first(3)))
    report = json_report(world.store)
    seconds = {cell["attack"]: cell["second"] for cell in report["matrix"]}
    assert [(s["machine"], s["differ"]) for s in seconds["fgsm"]] == [
        (one.sentence, 0), (two.sentence, 0),
    ]  # fmt: skip
    assert [(s["machine"], s["differ"]) for s in seconds["pgd"]] == [
        (one.sentence, 0), (two.sentence, 2),
    ]  # fmt: skip
    assert (report["digest"], report["ranking"]) == (before["digest"], before["ranking"])
    text = " ".join(printed(report, 200).split())
    assert "Second evaluations of cells: 3 of 4 gave the same verdicts." in text
    assert (
        f"pgd against d, again on {two.sentence}: 2 of 600 verdicts differ: item 3: broken (class"
        " 1, margin 1.39) at first, now robust (class 0, margin -1.1 or less). item 4:" in text
    )


def test_each_row_has_its_measures_in_json_and_text(world: World) -> None:
    enter(world, "d", first(450), first(30), first(90))
    report = json_report(world.store)
    (row,) = report["ranking"]
    on_correct = row["robust_on_correct"]
    assert (on_correct["k"], on_correct["n"]) == (360, 450)
    assert row["clean"]["k"] * on_correct["k"] == row["robust"]["k"] * on_correct["n"]
    assert row["measures"]["confidence"]["n"] == 450
    assert [point["robust"]["k"] for point in row["distortion"]] == [450, 360]
    text = printed(report, 100).partition("Measures over all attacks")[2]
    figures = " ".join(text.split("\n\n")[0].split())
    # Broken images have confidence .25 and loss 1.39, the others .75 and .29; two attacks of .5 s.
    assert "d 360/450 0.75 to 0.65 - 0.56 to 0.73 0.0 0.0017" in figures


def test_a_tied_row_states_what_would_change_its_rank(world: World) -> None:
    for name, broken in (("strong", 100), ("peer", 103), ("weak", 400)):
        enter(world, name, ALL, NONE, first(broken))
    report = json_report(world.store)
    found = {row["defense"]: row["separation"] for row in report["ranking"]}
    assert (found["strong"]["other"], found["strong"]["more_examples"]) == ("peer", 600)
    assert (found["weak"]["other"], found["weak"]["tied"]) == ("peer", False)
    assert [(p["a"], p["b"], p["tied"]) for p in report["pairs"]][-1] == ("strong", "peer", True)
    assert len(report["pairs"]) == 3
    text = " ".join(printed(report, 120).split())
    assert "strong: Tied with peer (3 examples only here, 0 only there, p = 0.25" in text
    assert "about 600 more examples of the same kind would separate them" in text
    assert "weak: " not in text.partition("Machine")[0].rpartition("strong: ")[2]


def test_variants_of_an_attack_are_in_the_order_of_their_numbers(world: World) -> None:
    enter(world, "d", ALL, NONE, NONE)
    names = [f"pgd[steps={steps}]" for steps in (100, 20, 5)]
    for name in (*names, "pgd-margin"):
        world.attack(name)
        world.evaluate("d", name, NONE)
    report = json_report(world.store)
    ordered = ["fgsm", "pgd", *reversed(names), "pgd-margin"]
    assert [cell["attack"] for cell in report["matrix"]] == ordered
    text = printed(report, 200)
    assert sorted(ordered, key=lambda name: text.index(f" {name} ")) == ordered

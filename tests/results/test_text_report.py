"""The report on a terminal: at every width words and figures are printed whole."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.core.cells import CLEAN, CellState, Culprit, Failure
from bench.results.json_report import json_report
from bench.results.text_report import text_report
from bench.results.text_table import BlockTable, TextColumn, wrap
from bench.threats.suites import Suite
from tests.fixtures.small_store import World, first, outcomes, some
from tests.results.small_results import ALL

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
        "Rank Defense Clean Required Robust 95 % Strongest Done Verdict standard Attack AUC"
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

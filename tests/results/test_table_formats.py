"""The tables of a report in every format: the same figures, and text of any signs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.core.statistics import Count, count_interval
from bench.results.json_report import json_report
from bench.results.report_tables import ReportTable, matrix_of_counts, ranking_of_counts
from bench.results.table_formats import (
    LATEX_SIGNS,
    escape_latex,
    escape_markdown,
    table_as_csv,
    table_as_latex,
    table_as_markdown,
)
from bench.results.text_table import TextColumn
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, enter

HOSTILE = "a_b|c[d]=1 & $e$ {f} #1 100% ~x^2 <g> \\h *i*"


@pytest.fixture
def filled(world: World) -> World:
    """Three defenses with different figures, one with a name of every sign."""
    for number, name in enumerate(("d", HOSTILE, "e")):
        enter(world, name, ALL & ~first(number), first(40 + 7 * number), first(100 + 33 * number))
    return world


def invoked(world: World, *words: str) -> Result:
    done = CliRunner().invoke(app, ["report", "--db", world.store.url, *words])
    assert done.exit_code == 0, done.output
    return done


def latex_rows(text: str) -> list[list[str]]:
    """The rows of the first tabular, every cell as plain text."""
    back = {command: sign for sign, command in LATEX_SIGNS.items()}
    commands = re.compile("|".join(map(re.escape, sorted(back, key=len, reverse=True))))
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].replace("\\midrule\n", "")
    lines = [line.removesuffix(r" \\") for line in body.strip().splitlines()]
    rows = [re.split(r"(?<!\\) & ", line) for line in lines]
    return [[commands.sub(lambda m: back[m[0]], cell) for cell in row] for row in rows]


def markdown_rows(text: str) -> list[list[str]]:
    """The rows of the first table, every cell as plain text."""
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines if "---" not in line]
    return [[re.sub(r"\\([^A-Za-z0-9 ])", r"\1", cell) for cell in row] for row in rows]


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def shares(table: ReportTable) -> list[list[str]]:
    """The figures of a table in percent, and its texts, from its counts."""
    return [
        [f"{100 * cell.k / cell.n:.1f}" if isinstance(cell, Count) else str(cell) for cell in row]
        for row in table.rows
    ]


@pytest.mark.parametrize(
    ("convert", "read"),
    [
        (lambda table: table_as_latex(table, "linf", "0" * 64), latex_rows),
        (table_as_markdown, markdown_rows),
    ],
)
def test_every_cell_of_the_text_table_is_in_the_paper_table(
    filled: World,
    convert: Callable[[ReportTable], str],
    read: Callable[[str], list[list[str]]],
) -> None:
    report = json_report(filled.store)
    for table in (ranking_of_counts(report), matrix_of_counts(report)):
        head, *rows = read(convert(table))
        assert head == [column.name for column in table.columns]
        for shown, wanted, text in zip(rows, shares(table), table.in_blocks().rows, strict=True):
            for cell, share, terminal in zip(shown, wanted, text, strict=True):
                found = re.fullmatch(r"(\d+)/(\d+)", terminal)
                if found and share != terminal:
                    assert cell == f"{100 * int(found[1]) / int(found[2]):.1f}" == share
                else:
                    assert cell.replace("--", "-") == terminal


def test_csv_has_the_counts_of_the_text_table(filled: World) -> None:
    report = json_report(filled.store)
    rows = csv_rows(invoked(filled, "--format", "csv").stdout)
    table = ranking_of_counts(report)
    assert [row["defense"] for row in rows] == [line[1] for line in table.rows]
    for row, line in zip(rows, table.in_blocks().rows, strict=True):
        assert [f"{row[f'{n}_k']}/{row[f'{n}_n']}" for n in ("clean", "ranked", "robust")] == [
            line[2], line[3], line[4],
        ]  # fmt: skip
        low, high = 100 * float(row["robust_low"]), 100 * float(row["robust_high"])
        assert f"{low:.1f}-{high:.1f}" == line[5]


def test_csv_of_the_matrix_has_a_row_for_each_cell(filled: World) -> None:
    filled.attack("bim")
    filled.plan(filled.cell("d", "bim"))
    rows = csv_rows(invoked(filled, "--format", "csv", "--table", "matrix").stdout)
    report = json_report(filled.store)
    assert [(row["defense"], row["attack"], row["state"]) for row in rows] == [
        (cell["defense"], cell["attack"], cell["state"]) for cell in report["matrix"]
    ]
    for row, cell in zip(rows, report["matrix"], strict=True):
        expected = cell["robust"] and (cell["robust"]["k"], cell["robust"]["n"])
        found = (int(row["robust_k"]), int(row["robust_n"])) if row["robust_k"] else None
        assert found == expected


def test_the_command_writes_the_tables_of_a_paper(filled: World) -> None:
    latex = invoked(filled, "--format", "latex").stdout
    root = json_report(filled.store)["root"]
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 2
    assert latex.count(r"\toprule") == latex.count(r"\midrule") == latex.count(r"\bottomrule") == 2
    assert (
        r"\label{tab:linf-ranking}" in latex
        and f"% Root of all results in the database: {root}" in latex
    )
    assert r"in \% of 600 examples" in latex
    only = invoked(filled, "--format", "latex", "--table", "matrix").stdout
    assert only.count(r"\begin{table}") == 1 and latex.endswith(only)
    markdown = invoked(filled, "--format", "markdown").stdout
    assert "**Ranking under linf, in % of 600 examples**" in markdown
    assert invoked(filled, "--format", "json").stdout == invoked(filled, "--json").stdout
    assert invoked(filled, "--format", "text").stdout == invoked(filled).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "html"], "--format is 'html'; use one of text, json, csv, markdown, latex."),
        (
            ["--format", "latex", "--table", "rank"],
            "--table is 'rank'; use one of ranking, matrix, radii, corruptions, union.",
        ),
        (["--table", "matrix"], "--table is for csv, markdown and latex; text has the whole"),
        (["--json", "--table", "matrix"], "json has the whole report"),
    ],
)
def test_a_wrong_format_is_one_sentence(filled: World, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["report", "--db", filled.store.url, *words])
    assert message in str(done.exception) and done.stdout == ""


def table_of(*cells: Any, n: int = 100) -> ReportTable:
    columns = [TextColumn("Name", "left"), *(TextColumn(f"c{i}") for i in range(len(cells) - 1))]
    return ReportTable("ranking", "A table", columns, [cells], 1, n)


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1))
def test_any_name_is_one_cell(name: str) -> None:
    name = f"x{name}x"
    table = table_of(name, count_interval(1, 100))
    assert latex_rows(table_as_latex(table, name, ""))[1] == [name, "1.0"]
    assert markdown_rows(table_as_markdown(table))[1] == [name, "1.0"]
    (row,) = csv_rows(table_as_csv(table))
    assert (row["name"], row["c0_k"]) == (name, "1")
    label = re.search(r"\\label\{tab:([^}]*)\}", table_as_latex(table, name, ""))
    assert label and re.fullmatch(r"[A-Za-z0-9.-]*", label[1])


def test_a_count_of_other_examples_says_so() -> None:
    table = table_of("d", count_interval(3, 4), count_interval(0, 0), "missing")
    assert latex_rows(table_as_latex(table, "", ""))[1] == ["d", "75.0 (3/4)", "-", "missing"]
    more = table_of("d", count_interval(3, 4), n=2)
    assert latex_rows(table_as_latex(more, "", ""))[1] == ["d", "75.0 (3/4)"]
    fine = table_of("d", count_interval(1, 20_000), n=20_000)
    assert latex_rows(table_as_latex(fine, "", ""))[1] == ["d", "0.01"]


def test_no_csv_cell_is_a_formula() -> None:
    (row,) = csv_rows(table_as_csv(table_of("=1+1", "-", "-2")))
    assert (row["name"], row["c0"], row["c1"]) == ("'=1+1", "-", "-2")


def test_escaped_text_holds_no_sign_that_is_a_command() -> None:
    assert escape_latex("100% of {a}_b \\ ~^") == (
        r"100\% of \{a\}\_b \textbackslash{} \textasciitilde{}\textasciicircum{}"
    )
    assert escape_markdown("a|b_c") == r"a\|b\_c"

"""Tables fit any terminal: no word and no figure is broken, and no column is lost."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.results.text_table import BlockTable, TextColumn, wrap

NAMES = ("clean", "robust required", "robust", "95 % interval", "strongest attack", "claimed")
TABLE = BlockTable(
    "Ranking",
    (TextColumn("defense", "left"), *(TextColumn(name) for name in NAMES)),
    [
        (name, "484/500 96.8 %", "238/500 47.6 %", "201/500 40.2 %", "36.0 to 44.6", "apgd-t", "-")
        for name in ("undefended", "pgd-training", "gaussian-noise")
    ],
)


def printed(table: BlockTable, width: int) -> list[str]:
    """The lines of a table on a terminal of this width."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().split("\n")]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_every_line_fits_and_every_figure_is_whole(width: int) -> None:
    lines = printed(TABLE, width)
    assert max(map(len, lines)) <= width
    for figure in ("484/500 96.8 %", "238/500 47.6 %", "201/500 40.2 %", "36.0 to 44.6"):
        assert sum(figure in line for line in lines) == 3


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_every_block_repeats_the_key_column(width: int) -> None:
    lines = printed(TABLE, width)
    blocks = sum("Ranking" in line for line in lines)
    assert sum("gaussian-noise" in line for line in lines) == blocks
    assert sum("continued" in line for line in lines) == blocks - 1


def test_a_wide_terminal_needs_one_block() -> None:
    assert not any("continued" in line for line in printed(TABLE, 160))


def test_an_empty_table_has_its_headings() -> None:
    lines = printed(BlockTable("Ranking", TABLE.columns, []), 160)
    assert any(all(name in line for name in NAMES) for line in lines)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two", 7, ["one two"]),
        ("one two", 4, ["one", "two"]),
        ("gradient-masking", 10, ["gradient-", "masking"]),
        ("undefended", 4, ["unde", "fend", "ed"]),
    ],
)
def test_text_breaks_at_spaces_then_hyphens_then_anywhere(
    text: str, width: int, lines: list[str]
) -> None:
    assert wrap(text, width).split("\n") == lines

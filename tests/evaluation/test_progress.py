"""What a run shows: a line a cell where nobody watches, and an honest guess of what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.core.cells import Cell
from bench.evaluation.events import Event
from bench.evaluation.progress import UNKNOWN, CostEstimates, ProgressDisplay

CELL = Cell("board", "shield", "sword", "id", "d", "a", "e", items=100)
NAMES = [("board", "sword", "shield"), ("board", "bow", "shield"), ("board", "bow", "wall")]


def test_costs_are_those_of_the_pair_then_of_the_attack_then_a_guess() -> None:
    costs = CostEstimates([])
    assert costs.of("bow", "wall") == UNKNOWN
    costs.learn("bow", "shield", 2.0)
    costs.learn("bow", "gate", 4.0)
    assert costs.of("bow", "shield") == 2.0
    assert costs.of("bow", "wall") == 3.0


def test_a_log_has_one_line_a_cell(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(NAMES, CostEstimates([])) as show:
        show(Event("cell", cell=CELL))
        show(Event("chunk", cell=CELL, items=64))
        show(Event("done", "40/100", CELL))
        show(Event("failed", "it broke.", replace(CELL, attack="bow")))
        show(Event("odd", "[red]careful[/red]"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[1/3] board · sword · shield: held 40/100",
        "[2/3] board · bow · shield: FAILED: it broke.",
        "[red]careful[/red]",
    ]


def test_what_is_left_is_the_sum_over_open_cells() -> None:
    costs = CostEstimates([])
    costs.learn("bow", "shield", 1.0)
    costs.learn("bow", "wall", 3.0)
    show = ProgressDisplay(NAMES, costs, quiet=True)
    show(Event("cell", cell=CELL))
    show(Event("done", "", CELL))
    assert show._left() == "about 6:40 left"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(NAMES, CostEstimates([]), quiet=True) as show:
        show(Event("done", "40/100", CELL))
    assert capsys.readouterr() == ("", "")

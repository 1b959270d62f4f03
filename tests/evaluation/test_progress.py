"""The progress display: one line per cell without a terminal, and the expected time left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.core.cells import Cell
from bench.core.statistics import count_interval
from bench.evaluation.events import (
    CellFailed,
    CellFinished,
    CellsElsewhere,
    CellStarted,
    ChunkRecorded,
    DefenseFailed,
    LeaseLost,
    PluginProblem,
    RunNotice,
    TrainingElsewhere,
    TrainingProgress,
)
from bench.evaluation.progress import UNKNOWN_COST, CostEstimates, ProgressDisplay

CELL = Cell("threat", "smoothing", "pgd", "id", "d", "a", "e", items=100)
NAMES = [
    ("threat", "pgd", "smoothing"),
    ("threat", "fab", "smoothing"),
    ("threat", "fab", "distillation"),
]
FORTY = count_interval(40, 100)


def test_a_cost_is_the_pairs_median_then_the_attacks_then_a_default() -> None:
    costs = CostEstimates([])
    assert costs.estimate("fab", "distillation") == UNKNOWN_COST
    costs.add("fab", "smoothing", 2.0)
    costs.add("fab", "undefended", 4.0)
    assert costs.estimate("fab", "smoothing") == 2.0
    assert costs.estimate("fab", "distillation") == 3.0


def test_without_a_terminal_each_result_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(NAMES, CostEstimates([])) as show:
        show(CellStarted(CELL))
        show(ChunkRecorded(CELL, 64))
        show(CellFinished(CELL, FORTY))
        show(CellFailed(replace(CELL, attack="fab"), "it broke."))
        show(RunNotice("[red]careful[/red]"))
        show(LeaseLost(CELL, "the lease is lost"))
        show(PluginProblem("refused: no hook"))
        show(TrainingProgress("linear: epoch 1/2"))
        show(TrainingElsewhere("linear"))
        show(TrainingElsewhere("linear", "process 17"))
        show(CellsElsewhere(CELL, 0, "12:00:01", "process 17 on host"))
        show(CellsElsewhere(CELL, 2, "12:00:01", "process 17 on host"))
        show(DefenseFailed("distillation", "no such layer."))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[1/3] threat · pgd · smoothing: robust 40/100",
        "[2/3] threat · fab · smoothing: FAILED: it broke.",
        "[red]careful[/red]",
        "the lease is lost",
        "refused: no hook",
        "linear: epoch 1/2",
        "linear is being trained by another worker",
        "linear is being trained by process 17",
        "waiting since 12:00:01 for threat · pgd · smoothing: process 17 on host evaluates it",
        "waiting since 12:00:01 for threat · pgd · smoothing and 2 more cells: process 17 on host "
        "evaluates it",
        "distillation: no such layer.",
    ]


def test_without_a_plan_a_result_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay((), CostEstimates([])) as show:
        show(CellFinished(CELL, FORTY))
    assert capsys.readouterr().err == "threat · pgd · smoothing: robust 40/100\n"


def test_the_time_left_is_the_sum_over_open_cells() -> None:
    costs = CostEstimates([])
    costs.add("fab", "smoothing", 1.0)
    costs.add("fab", "distillation", 3.0)
    show = ProgressDisplay(NAMES, costs, quiet=True)
    show(CellStarted(CELL))
    show(CellFinished(CELL, FORTY))
    assert show._time_left() == "about 6:40 left"


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(NAMES, CostEstimates([]), quiet=True) as show:
        show(CellFinished(CELL, FORTY))
    assert capsys.readouterr() == ("", "")

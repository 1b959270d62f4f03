"""What a run would do: the cost of open cells from recorded ones, in numbers and in a sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cli.run_commands import print_plan
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection, plan_pairs
from bench.evaluation.progress import CostEstimates
from bench.evaluation.run_plan import Forecast, forecast, planned_cells
from bench.evaluation.worker_count import WorkerCount
from bench.registry.registry import Registry
from bench.store import Store

ONE, TWO = WorkerCount(1, ""), WorkerCount(2, "one for each of 2 cores")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> MatrixRun:
    """FGSM against one defense on 64 digits."""
    url = f"sqlite:///{tmp_path_factory.mktemp('plan') / 'bench.db'}"
    selection = Selection(("digits-linf",), ("linear",), ("fgsm",), examples=64)
    run = MatrixRun(selection, url, device="cpu", quiet=True)
    assert run.run() == 0
    return run


def test_open_cells_cost_what_recorded_ones_did_for_each_item(evaluated: MatrixRun) -> None:
    """Right: FGSM on 128 digits takes twice its seconds; PGD has no record, a done cell no cost."""
    with Store.open(evaluated.url) as store:
        (recorded,) = (row.seconds for row in store.cells() if row.cell.attack == "fgsm")
    wider = Selection(
        ("digits-linf", "digits-targeted"),
        ("linear", "undefended"),
        ("fgsm", "pgd", "boundary"),
        128,
    )
    cells = replace(evaluated, selection=wider).plan()
    found = {(c["threat"], c["defense"], c["attack"]): c for c in cells}
    for defense in ("linear", "undefended"):
        assert found["digits-linf", defense, "fgsm"]["seconds"] == pytest.approx(2 * recorded)
        assert found["digits-linf", defense, "pgd"]["seconds"] is None
        assert found["digits-targeted", defense, "boundary"]["state"] == "not applicable"
    expected = forecast(cells, "cpu")
    assert expected.seconds == pytest.approx(
        2 * recorded * sum(c["attack"] == "fgsm" and c["seconds"] is not None for c in cells)
    )
    assert expected.unknown == sum(c["seconds"] is None and c["state"] == "missing" for c in cells)
    assert forecast(evaluated.plan(), "cpu")[:3] == (0, 0, 0)


def test_an_attack_on_the_first_examples_costs_those_only() -> None:
    """Right: HopSkipJump attacks 100 of 300 examples, at half a second each."""
    selection = Selection(("digits-l2",), ("linear",), ("hopskipjump",), examples=300)
    registry, costs = Registry.without_submissions(), CostEstimates([])
    costs.add("hopskipjump", "linear", 0.5)
    pairs = plan_pairs(registry, selection)
    cells = planned_cells(registry, selection, pairs, {}, costs)
    assert {c["seconds"] for c in cells if c["attack"] == "hopskipjump"} == {50.0}


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (Forecast(0, 0.0, 0, ONE), "No cell is open."),
        (Forecast(1, 0.0, 1, ONE), "1 open cell; this database has no cost of their attacks."),
        (Forecast(3, 60.0, 0, ONE), "3 open cells: about 60 s. Trainings come on top."),
        (
            Forecast(99, 7200.0, 4, TWO),
            "99 open cells: about 2.0 h; 60 min with 2 workers (one for each of 2 cores), and 4 "
            "whose attacks have no cost here. Trainings come on top.",
        ),
    ],
)
def test_the_sentence_names_time_workers_and_what_is_unknown(
    found: Forecast, sentence: str
) -> None:
    assert found.sentence == sentence


def test_the_command_prints_the_forecast(
    evaluated: MatrixRun, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = replace(evaluated.selection, defenses=("linear", "undefended"))
    print_plan(replace(evaluated, selection=wider, quiet=False), as_json=False)
    printed = capsys.readouterr()
    assert "1 open cell: about " in printed.err and "fgsm\tmissing" in printed.out
    print_plan(replace(evaluated, selection=wider), as_json=True)
    assert '"open_cells": 1' in capsys.readouterr().out

"""`bench run --order file` evaluates the first of the file, apart from the balanced ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench.core.cells import CLEAN
from bench.core.errors import BenchError
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.evaluation.reproduce import reproduce
from bench.results.json_report import json_report
from bench.results.text_report import text_report
from bench.store import Store

SELECTION = Selection(("digits-linf",), ("linear",), ("fgsm",), examples=32)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One cell on the first 32 examples of each order, in one database."""
    run = MatrixRun(SELECTION, f"sqlite:///{tmp_path_factory.mktemp('run')}/bench.db", quiet=True)
    by_file = replace(run, selection=replace(SELECTION, order="file"))
    assert run.run() == 0
    assert {row["state"] for row in by_file.plan()} == {"missing"}, "the other order is not reused"
    assert by_file.run() == 0
    assert {row["state"] for row in by_file.plan()} == {"done"}
    return str(run.url)


def test_the_cells_of_two_orders_have_different_keys_and_reports(url: str) -> None:
    with Store.open(url, read_only=True) as store:
        cells = [row.cell for row in store.cells() if row.cell.attack != CLEAN]
        reports = [json_report(store, "digits-linf", order=o) for o in ("balanced", "file")]
    assert len({cell.key for cell in cells}) == len({cell.examples for cell in cells}) == 2
    assert [report["examples"]["order"] for report in reports] == ["balanced", "file"]
    assert len({report["digest"] for report in reports}) == 2
    console = Console(width=200)
    with console.capture() as text:
        console.print(text_report(reports[1]))
    assert "32 examples (the first of the file), mode full" in text.get()


def test_cells_of_both_orders_are_reproduced(url: str) -> None:
    with Store.open(url, read_only=True) as store:
        keys = [row.key for row in store.cells() if row.cell.attack != CLEAN]
    assert all(reproduce(key, url, "cpu", allow_unsandboxed=False)["same"] for key in keys)


def test_an_unknown_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--order"):
        MatrixRun(replace(SELECTION, order="sorted"), f"sqlite:///{tmp_path}/bench.db").plan()

"""Reproducing a cell: in memory, and only while its plugins have not changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.core.errors import BenchError
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.evaluation.reproduce import replay, reproduce
from bench.registry.registry import Registry
from bench.store import CellRow, Store

SELECTION = Selection(("digits-linf",), ("linear",), ("fgsm", "pgd"), examples=48)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = MatrixRun(SELECTION, f"sqlite:///{tmp_path_factory.mktemp('run')}/bench.db", quiet=True)
    assert run.run() == 0
    return str(run.url)


def row(url: str) -> CellRow:
    with Store.open(url, read_only=True) as store:
        return next(row for row in store.cells() if row.cell.attack == "pgd")


def test_only_the_database_of_the_cell_is_opened(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[bool] = []
    whole = Store.__init__

    def record(store: Store, *given: object, read_only: bool) -> None:
        opened.append(read_only)
        whole(store, *given, read_only=read_only)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "__init__", record)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = reproduce(row(url).key[:16], url, "cpu", allow_unsandboxed=False)
    assert result["same"] and result["differ"] == []
    assert result["sentence"] == "digits-linf · pgd · linear: all 48 verdicts are the same."
    assert opened == [True, True, False], "the read of this test; the command reads, then writes"
    assert list(tmp_path.iterdir()) == []


def test_a_beginning_that_names_no_finished_cell_is_an_error(url: str) -> None:
    with pytest.raises(BenchError, match="0 finished cells have a key that begins with '0000000'"):
        reproduce("0000000", url, "cpu", allow_unsandboxed=False)


def test_a_cell_of_changed_plugins_is_an_error(url: str) -> None:
    cell = replace(row(url).cell, defense_digest="other weights")
    with pytest.raises(BenchError, match="linear or pgd has changed since this cell was evaluated"):
        replay(Registry.without_submissions(), cell, range(48), 48, torch.device("cpu"))

"""A cell whose attack fails late keeps its earlier outcomes; threads change no verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core.cells import CellState, Culprit
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Access, Problem
from bench.registry.registry import Registry
from bench.results import json_report
from bench.results.leaderboards import find_leaderboard
from bench.results.ranking import load_ranking
from bench.store import Store

SELECTION = Selection(("digits-linf",), ("linear",), ("late",), examples=192)


class Late:
    """An attack that raises an error once it has met some images."""

    name = "late"
    needs = Access.LABELS
    steps = 1
    fails = True
    met = 0

    def start(self, problem: Problem) -> Tensor:
        """The clean images."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """The iterate stays."""
        Late.met += len(adv)
        if Late.fails and Late.met > 100:
            raise ValueError("the last batch")
        return adv


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    loaded = Registry.load(tmp_path / "no submissions")
    known = loaded.find("attack", "random")
    loaded.attacks["late"] = replace(known, value=Late(), module=__name__)
    return loaded


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def evaluate(registry: Registry, store: Store) -> Any:
    settings = RunSettings(torch.device("cpu"), 64)
    MatrixWorker(registry, store, SELECTION, settings, certifiers="none").run()
    return next(row for row in store.cells() if row.cell.attack == "late")


@pytest.mark.slow
def test_an_attack_that_fails_on_the_last_batch_keeps_the_others_and_has_no_rank(
    registry: Registry, store: Store
) -> None:
    Late.fails, Late.met = True, 0
    failed = evaluate(registry, store)
    kept = store.finished_items(failed.key).tolist()
    assert (failed.state, failed.culprit) == (CellState.FAILED, Culprit.PLUGIN)
    assert "the last batch" in failed.reason
    assert 0 < len(kept) < failed.cell.items
    ranking = load_ranking(store, find_leaderboard(store, "digits-linf"))
    assert [row.rank for row in ranking if row.defense == "linear"] == [None]
    Late.fails, Late.met = False, 0
    done = evaluate(registry, store)
    assert (done.key, done.state) == (failed.key, CellState.DONE)
    assert Late.met <= done.cell.items - len(kept) + 64
    assert store.outcomes(done.key).item.tolist() == list(range(192))


@pytest.mark.slow
def test_the_number_of_threads_changes_no_outcome(tmp_path: Path) -> None:
    chosen = Selection(("digits-linf",), ("undefended",), ("fgsm", "random"), examples=64)
    before, digests = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            url = f"sqlite:///{tmp_path / str(threads)}.db"
            assert MatrixRun(chosen, url, quiet=True).run() == 0
            with Store.open(url) as store:
                digests.append(json_report.json_report(store, "digits-linf")["digest"])
    finally:
        torch.set_num_threads(before)
    assert digests[0] == digests[1]

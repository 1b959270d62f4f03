"""Cells of attacks that fit one point: key, stored point, resumption, cost and refusals.

Tests bench.evaluation.shared_fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from bench.core.cells import CellState, Culprit
from bench.core.outcomes import Verdict
from bench.data import datasets
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection, why_not_applicable
from bench.evaluation.reproduce import reproduce
from bench.evaluation.worker import MatrixWorker
from bench.plugin import SHARED, Access, Budget, LinfDelta, ThreatModel
from bench.registry.registry import Registry
from bench.results.json_report import json_report
from bench.results.text_report import text_report
from bench.store import Store
from plugins.attacks.shared_gradient import SharedGradient
from plugins.threats.digits import shared as shared_threats

THREAT = "digits-universal-linf"
SELECTION = Selection((THREAT,), ("linear",), ("universal-gradient", "shared-random"), examples=200)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = MatrixRun(SELECTION, f"sqlite:///{tmp_path_factory.mktemp('run')}/bench.db", quiet=True)
    assert run.run() == 0
    return str(run.url)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url, read_only=True) as opened:
        yield opened


def cell_row(store: Store, attack: str = "universal-gradient") -> Any:
    return next(row for row in store.cells() if row.cell.attack == attack)


@pytest.mark.row("G15", "A12")
def test_all_successes_of_a_stored_cell_carry_the_one_stored_point(store: Store) -> None:
    key = cell_row(store).key
    fitted, found = store.fit(key), store.outcomes(key)
    assert fitted is not None and fitted.point.shape == (1, 1, 8, 8)
    assert store.points(key) is None, "the point is stored once"
    registry = Registry.without_submissions()
    dataset = registry.find("dataset", "digits").value
    x, y = (
        datasets.first_examples(dataset, 200).tensor(),
        store.examples(cell_row(store).cell.examples),
    )
    images = (x + torch.tensor(fitted.point)).clamp(0, 1)
    kept = {image.item: image.adversarial for image in store.images(key)}
    assert kept and all(np.array_equal(images[item].numpy(), adv) for item, adv in kept.items())
    assert len(found.item) == 200 and (found.verdict == Verdict.BROKEN).sum() > 100
    assert np.array_equal(found.verdict == Verdict.BROKEN, found.label != y.labels)


def test_the_key_holds_the_training_half_and_the_cost_of_the_fit_is_reported(store: Store) -> None:
    row = cell_row(store)
    dataset = Registry.without_submissions().find("dataset", "digits").value
    assert row.cell.source_digest == datasets.training_digest(dataset) != ""
    assert replace(row.cell, source_digest="other").key != row.key
    report = json_report(store, THREAT)
    (measured,) = (one["measures"]["shared"] for one in report["ranking"])
    (mine,) = (one for one in measured if one["attack"] == "universal-gradient")
    fitted = store.fit(row.key)
    assert fitted is not None
    assert (mine["queries"], mine["gradients"]) == (fitted.forwards, fitted.gradients)
    count = len(datasets.load_dataset(dataset).train.labels)  # type: ignore[union-attr]
    assert fitted.gradients == SharedGradient("a", (), "", "").epochs * count
    assert fitted.forwards == fitted.gradients + count, "each clean image is queried once"
    assert mine["changed"]["n"] == 200 and mine["robust"]["k"] < 100 < mine["changed"]["k"]
    outcomes = store.outcomes(row.key)
    clean = store.outcomes(cell_row(store, "clean").key)
    assert mine["changed"]["k"] == (outcomes.label != clean.label).sum()
    right = (clean.verdict == Verdict.ROBUST) & (outcomes.verdict != Verdict.BROKEN)
    assert mine["robust"]["k"] == right.sum()
    console = Console(width=200, record=True, file=StringIO())
    console.print(text_report(report))
    assert "One point for all images" in console.export_text()


def test_a_second_evaluation_fits_the_same_point(url: str, store: Store) -> None:
    result = reproduce(cell_row(store).key[:16], url, "cpu", allow_unsandboxed=False)
    assert result["same"] and result["differ"] == []
    assert store.check() == []


class FitsOnce:
    """A shared attack that counts its fits and fails where it is told to."""

    name = "universal-gradient"
    coordinates = True
    needs = Access.NOTHING
    fits = 0

    def fit(self, problem: Any) -> Tensor:
        """A corner of the set."""
        FitsOnce.fits += 1
        direction = problem.draws.normal("corner", (1, 8, 8))
        point: Tensor = problem.ball.farthest(direction, problem.start)
        return point


def test_an_interrupted_cell_goes_on_with_the_stored_point(tmp_path: Path) -> None:
    registry = Registry.without_submissions()
    known = registry.find("attack", "universal-gradient")
    registry.attacks["universal-gradient"] = replace(known, value=FitsOnce(), module=__name__)
    few = replace(SELECTION, attacks=("universal-gradient",))
    FitsOnce.fits = 0
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        worker = MatrixWorker(
            registry, store, few, RunSettings(torch.device("cpu"), 64), certifiers="none"
        )
        whole = worker.store.record
        chunks: list[Any] = []

        def record(lease: Any, chunk: Any) -> None:
            if chunk.outcomes.forwards.shape[0] != 200:  # not the clean pass
                assert store.fit(lease.key) is not None, "the point is there before the first chunk"
                chunks.append(chunk)
                if len(chunks) == 2:
                    raise KeyboardInterrupt
            whole(lease, chunk)

        store.record = record  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            worker.run()
        store.record = whole  # type: ignore[method-assign]
        key = cell_row(store).key
        assert len(store.finished_items(key)) == 64
        first = store.fit(key)
        MatrixWorker(
            registry, store, few, RunSettings(torch.device("cpu"), 64), certifiers="none"
        ).run()
        assert cell_row(store).state is CellState.DONE and FitsOnce.fits == 1
        assert len(store.outcomes(key).item) == 200
        again = store.fit(key)
        assert first is not None and again is not None
        assert first.point.tobytes() == again.point.tobytes()


def test_a_data_set_without_a_training_half_fails_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.without_submissions()
    whole = datasets.load_dataset

    def halved(dataset: Any) -> Any:
        return replace(whole(dataset), train=None)

    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        worker = MatrixWorker(
            registry, store, SELECTION, RunSettings(torch.device("cpu")), certifiers="none"
        )
        monkeypatch.setattr(datasets, "load_dataset", halved)
        worker.run()
        row = cell_row(store)
    assert row.state is CellState.FAILED and row.culprit is not Culprit.HARNESS
    assert "digits has none: choose a data set with a training half" in row.reason


def test_attacks_and_threat_models_of_another_scope_do_not_apply() -> None:
    registry = Registry.without_submissions()
    shared, pgd = (registry.find("attack", n).value for n in ("universal-gradient", "pgd"))
    linear = registry.find("defense", "linear").value
    of_all, of_each = (registry.find("threat", n).value for n in (THREAT, "digits-linf"))
    assert why_not_applicable(of_all, linear, shared) == ""
    assert "one for each image" in why_not_applicable(of_each, linear, shared)
    assert "one for all images" in why_not_applicable(of_all, linear, pgd)
    limited = replace(of_all, budget=Budget(queries=10))
    assert "limits queries of each image" in why_not_applicable(limited, linear, shared)
    patch = registry.find("attack", "adversarial-patch").value
    assert "works in random-patch" in why_not_applicable(of_all, linear, patch)


def test_the_scope_is_part_of_the_id_and_needs_a_parametric_set() -> None:
    ball = LinfDelta(eps=Fraction(1, 5))
    each, every = ThreatModel("a", "digits", ball), ThreatModel("a", "digits", ball, scope=SHARED)
    assert each.id != every.id and "scope" not in each.rules()
    assert every.id == next(shared_threats()).id
    with pytest.raises(ValueError, match="scope is 'all'"):
        ThreatModel("a", "digits", ball, scope="all")
    norm = Registry.without_submissions().find("threat", "digits-linf").value.ball
    with pytest.raises(ValueError, match="use a parametric set"):
        ThreatModel("a", "digits", norm, scope=SHARED)

"""Canaries come out right, and a fault of an attack, the engine or the referee turns one wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.engine import model_access
from bench.evaluation import canaries as canaries_module
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.canaries import (
    CanaryReport,
    cached_canaries,
    code_digest,
    mark_cell,
    play_canaries,
    recorded_canaries,
)
from bench.evaluation.canary_models import Canary, canaries
from bench.evaluation.launcher import MatrixRun, canaries_of_run
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import Evidence, Finding, Problem
from bench.registry.registry import Registry
from bench.results.canary_check import CANARY_CHECK
from bench.results.leaderboards import find_leaderboard
from bench.results.ranking import load_ranking
from bench.store import Store
from bench.threats.norms import Linf
from plugins.attacks.pgd import PGD

SETTINGS = RunSettings(torch.device("cpu"))
ALL = {canary.name: canary for canary in canaries()}
CLOSED = ["canary-linear-linf", "canary-linear-l2", "canary-linear-l1"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Play these canaries alone, to save time."""
    monkeypatch.setattr(canaries_module, "canaries", lambda: iter([ALL[name] for name in names]))


def images(canary: Canary) -> Tensor:
    """[n, 1, 4, 4] in float64."""
    return torch.from_numpy(canary.images / 255)


@pytest.mark.parametrize("name", CLOSED)
def test_the_farthest_point_of_the_set_breaks_exactly_the_breakable(name: str) -> None:
    canary = ALL[name]
    model, x = canary.model.double(), images(canary)
    try:
        layer = next(part for part in model.modules() if isinstance(part, nn.Linear))
        across = (layer.weight[1] - layer.weight[0]).view(1, 1, 4, 4).expand_as(x)
        towards = torch.from_numpy(1.0 - 2 * canary.labels)[:, None, None, None] * across
        farthest = x + float(canary.ball.radius) * canary.ball.steepest(towards, x)
        assert ((farthest > 0) & (farthest < 1)).all()
        wrong = model(farthest).argmax(1).numpy() != canary.labels
    finally:
        model.float()
    assert np.array_equal(wrong, canary.breakable)


@pytest.mark.parametrize("name", ALL)
def test_half_of_the_images_are_breakable_and_all_are_classified(name: str) -> None:
    canary = ALL[name]
    assert len(canary.labels) == 64 and canary.breakable.sum() == 32
    assert np.array_equal(
        canary.model(images(canary).float()).argmax(1).numpy(), canary.labels
    ) or (canary.warning)


@pytest.mark.parametrize("name", ALL)
def test_every_canary_comes_out_right(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    only(monkeypatch, name)
    assert play_canaries(registry, SETTINGS).findings == {name: ""}


class Reversed(PGD):
    """PGD that descends."""

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        ahead = super().step(problem, adv)
        return problem.ball.project(2 * adv - ahead, problem.x)


class OneStepShort(PGD):
    """PGD whose steps are a hundred times too small."""

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.project(adv + 0.01 * (super().step(problem, adv) - adv), problem.x)


@pytest.mark.parametrize("broken", [Reversed, OneStepShort])
def test_a_weakened_attack_is_named(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, broken: type[PGD]
) -> None:
    only(monkeypatch, "canary-linear-linf")
    changed = replace(registry.attacks["pgd"], value=broken(random_start=False))
    monkeypatch.setitem(registry.attacks, "pgd", changed)
    (wrong,) = play_canaries(registry, SETTINGS).failures.values()
    assert wrong.startswith("pgd leaves ") and wrong.count(".") == 1


def flip_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reverse the sign of every gradient that the engine returns."""
    right = model_access.input_gradient
    monkeypatch.setattr(
        model_access, "input_gradient", lambda *given, **named: -right(*given, **named)
    )


def test_a_wrong_sign_in_the_engine_turns_every_gradient_attack_wrong(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "canary-linear-linf")
    flip_gradients(monkeypatch)
    (wrong,) = play_canaries(registry, SETTINGS).failures.values()
    assert all(f"{name} leaves" in wrong for name in ("fgsm", "bim", "pgd", "apgd-ce", "fab"))


def test_an_unused_bpda_approximation_is_found(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "canary-bpda")
    unused = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(model_access.ModelAccess, "has_bpda", unused, raising=False)
    (wrong,) = play_canaries(registry, SETTINGS).failures.values()
    assert all(f"{name} leaves 32" in wrong for name in ("fgsm", "pgd"))


def test_a_set_that_is_too_large_breaks_the_unbreakable(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "canary-linear-linf")
    monkeypatch.setattr(Linf, "radius", property(lambda self: 1.5 * float(self.eps)))
    (wrong,) = play_canaries(registry, SETTINGS).failures.values()
    assert "have no adversarial example" in wrong


class Silent:
    """A diagnostic that never warns."""

    name = "silent"

    def examine(self, *given: Any, **named: Any) -> Evidence:
        return Evidence(Finding.PASSED, "Nothing.")


@pytest.mark.parametrize(
    ("name", "fake"),
    [
        ("zero-gradients", "canary-detached"),
        ("deterministic", "canary-noise"),
        ("batch-independent", "canary-batch-mean"),
    ],
)
def test_a_diagnostic_that_misses_its_fake_is_named(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str, fake: str
) -> None:
    only(monkeypatch, fake)
    changed = replace(registry.diagnostics[name], value=Silent())
    monkeypatch.setitem(registry.diagnostics, name, changed)
    assert name in play_canaries(registry, SETTINGS).failures[fake]


def test_an_attack_that_cannot_run_fails_its_canary(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "canary-band")
    monkeypatch.delitem(registry.attacks, "bim")
    assert "no attack named 'bim'" in play_canaries(registry, SETTINGS).failures["canary-band"]


def test_workers_find_the_report_that_their_launcher_made(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    only(monkeypatch, "canary-band")
    matrix_run = MatrixRun(Selection(), None, device="cpu", workers=2)
    told: list[Any] = []
    torch.set_num_threads(2)
    first = canaries_of_run(matrix_run, store, registry, told.append)
    assert torch.get_num_threads() == 1 and not told
    monkeypatch.setattr(canaries_module, "play_canaries", lambda *given: pytest.fail("played"))
    assert canaries_of_run(matrix_run, store, registry, told.append) == first


def test_a_run_of_failing_code_says_so(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    only(monkeypatch, "canary-band")
    flip_gradients(monkeypatch)
    told: list[Any] = []
    canaries_of_run(MatrixRun(Selection(), None, device="cpu"), store, registry, told.append)
    (notice,) = told
    assert notice.text.startswith("Rows of this run are invalid. 1 of 1 canaries fail")


def test_they_are_played_once_for_a_code_and_machine(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    only(monkeypatch, "canary-band")
    first = recorded_canaries(store, registry, SETTINGS)
    assert first.findings == {"canary-band": ""}
    monkeypatch.setattr(canaries_module, "play_canaries", lambda *given: pytest.fail("played"))
    assert recorded_canaries(store, registry, SETTINGS) == first
    assert cached_canaries(registry, SETTINGS) == first
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        assert recorded_canaries(other, registry, SETTINGS) == first


def test_other_code_or_another_machine_plays_them_again(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    only(monkeypatch, "canary-band")
    right = recorded_canaries(store, registry, SETTINGS)
    flip_gradients(monkeypatch)
    monkeypatch.setattr(canaries_module, "code_digest", lambda: "other code")
    assert recorded_canaries(store, registry, SETTINGS).failures
    monkeypatch.setattr(canaries_module, "code_digest", lambda: right.code)
    assert not recorded_canaries(store, registry, SETTINGS).failures
    monkeypatch.setattr(canaries_module, "machine_class", lambda *given: "other machine")
    assert recorded_canaries(store, registry, SETTINGS).failures


def test_the_digest_of_the_code_covers_engine_referee_and_attacks() -> None:
    assert code_digest() == code_digest() and len(code_digest()) == 64
    folders = {*canaries_module.CODE_FOLDERS, *canaries_module.PLUGIN_FOLDERS}
    assert {"engine", "referee", "threats", "attacks", "diagnostics"} <= folders


def evaluate(store: Store, registry: Registry, report: CanaryReport, *attacks: str) -> None:
    selection = Selection(("digits-linf",), ("linear",), attacks, examples=32)
    settings = RunSettings(torch.device("cpu"), 32)
    MatrixWorker(
        registry, store, selection, settings, certifiers="none", canaries=report
    ).run()  # fmt: skip


def test_rows_of_failing_code_are_invalid_and_remain_so(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "canary-linear-linf")
    right = play_canaries(registry, SETTINGS)
    flip_gradients(monkeypatch)
    wrong = play_canaries(registry, SETTINGS)
    evaluate(store, registry, wrong, "fgsm")
    evaluate(store, registry, right, "bim")
    (row,) = load_ranking(store, find_leaderboard(store, "digits-linf"))
    (check,) = (check for check in row.flags if check.name == CANARY_CHECK)
    assert row.verdict == "invalid" and check.state == "raised"
    assert "canary-linear-linf: fgsm leaves 32" in check.evidence and "1 of 2" in check.evidence


def test_a_cell_begun_by_failing_code_keeps_its_mark(registry: Registry, store: Store) -> None:
    wrong = CanaryReport("old", "machine", {"canary-band": "pgd leaves 3."})
    right = CanaryReport("new", "machine", {"canary-band": ""})
    evaluate(store, registry, right, "fgsm")
    (cell,) = (row.cell for row in store.cells("digits-linf"))
    for report, state in ((right, "clear"), (wrong, "raised"), (right, "raised")):
        mark_cell(store, cell, report)
        assert store.evidence_of(CANARY_CHECK)[cell.key].finding == state

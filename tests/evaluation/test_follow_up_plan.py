"""Follow-up attacks of a run: played where a check warns, in every later run, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from bench.core.cells import CLEAN, CellState
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.follow_up_plan import follow_up_pairs
from bench.evaluation.plan import Selection
from bench.evaluation.worker import MatrixWorker
from bench.plugin import LeaderboardProtocol, Linf
from bench.registry.registry import Registry
from bench.results.check_table import DECISION, SCORES
from bench.store import Store

PROTOCOL = LeaderboardProtocol(
    ("fgsm",),
    {SCORES: ("square",), DECISION: ("random",)},
    {"standard": "undefended"},
    ("smaller",),
)
SELECTION = Selection(("checked",), ("argmax-only", "linear"), examples=64)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    found = Registry.load(tmp_path_factory.mktemp("no submissions"))
    base = found.threats["digits-linf"]
    checked = replace(base.value, name="checked", protocol=PROTOCOL)
    smaller = replace(
        checked, name="smaller", ball=Linf(Fraction(1, 10)),
        protocol=LeaderboardProtocol(("fgsm",), ranked=False),
    )  # fmt: skip
    for threat in (checked, smaller):
        found.threats[threat.name] = replace(base, value=threat)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def run(registry: Registry, store: Store, selection: Selection = SELECTION) -> set[tuple[str, ...]]:
    """The (threat model, defense, attack) of the cells of a run, without the clean passes."""
    settings = RunSettings(torch.device("cpu"), 32)
    MatrixWorker(registry, store, selection, settings, certifiers="none").run()
    rows = [row for row in store.cells() if row.cell.attack != CLEAN]
    assert {row.state for row in rows} <= {CellState.DONE, CellState.NOT_APPLICABLE}
    return {(row.cell.threat, row.cell.defense, row.cell.attack) for row in rows}


def test_a_warning_starts_its_follow_ups_and_a_second_run_does_nothing(
    registry: Registry, store: Store
) -> None:
    cells = run(registry, store)
    linear = {(t, "linear", "fgsm") for t in ("checked", "smaller")}
    masked = {(t, "argmax-only", "fgsm") for t in ("checked", "smaller")}
    later = {("checked", "argmax-only", attack) for attack in ("square", "random")}
    assert cells == linear | masked | later
    stamps = {row.key: row.updated for row in store.cells()}
    assert run(registry, store) == cells
    assert {row.key: row.updated for row in store.cells()} == stamps


def test_named_attacks_call_for_nothing_else(registry: Registry, store: Store) -> None:
    cells = run(registry, store, replace(SELECTION, attacks=("fgsm",)))
    assert cells == {("checked", name, "fgsm") for name in SELECTION.defenses}
    assert follow_up_pairs(registry, store, replace(SELECTION, attacks=("fgsm",))) == []


def test_a_changed_protocol_evaluates_only_what_is_missing(
    registry: Registry, store: Store
) -> None:
    first = run(registry, store, replace(SELECTION, defenses=("linear",)))
    stamps = {row.key: row.updated for row in store.cells()}
    base = registry.threats["checked"]
    more = replace(base.value, protocol=replace(PROTOCOL, required=("fgsm", "random")))
    changed = replace(registry, threats={**registry.threats, "checked": replace(base, value=more)})
    second = run(changed, store, replace(SELECTION, defenses=("linear",)))
    assert second - first == {("checked", "linear", "random")}
    assert stamps.items() <= {row.key: row.updated for row in store.cells()}.items()


def test_evidence_threat_models_come_with_their_leaderboard(registry: Registry) -> None:
    names = {threat.name for threat in plan.selected_threats(registry, SELECTION)}
    assert names == {"checked", "smaller"}
    named = replace(SELECTION, attacks=("fgsm",))
    assert {threat.name for threat in plan.selected_threats(registry, named)} == {"checked"}

"""The examination of attacks before their first cell: once for each digest and machine class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.contract.batch_dependence import batch_dependence
from bench.evaluation.attack_batches import record_batch_findings
from bench.evaluation.events import Event, RunNotice
from bench.evaluation.plan import PlannedPair
from bench.plugin import Evidence, Finding
from bench.registry.registry import Registry
from bench.results.attack_findings import BATCH_CHECK
from bench.store import Store
from tests.contract.planted import Climb, extended
from tests.contract.test_batch_dependence import MeanOfBatch


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def record(
    store: Store,
    registry: Registry,
    attack: Any,
    check: Any,
    machine: str = "here",
    reason: str = "",
) -> list[str]:
    """The notices of the examination of one attack, registered as a plugin."""
    known = extended(registry, "attack", attack)
    threat, defense = known.threats["digits-linf"].value, known.defenses["linear"].value
    pairs = [PlannedPair(threat, defense, attack, reason)]
    sent: list[Event] = []
    record_batch_findings(store, known, pairs, check, machine, sent.append)
    return [event.text for event in sent if isinstance(event, RunNotice)]


def test_an_attack_that_depends_on_its_batch_is_recorded_and_said_in_every_run(
    registry: Registry, store: Store
) -> None:
    state = torch.random.get_rng_state()
    (first,) = record(store, registry, MeanOfBatch(), batch_dependence)
    assert first.startswith("planted: Its result for an image depends on the rest of the batch")
    assert torch.equal(state, torch.random.get_rng_state())
    (row,) = store.evidence_of(BATCH_CHECK).values()
    assert (row.finding, row.sentence) == ("raised", first.removeprefix("planted: "))
    assert record(store, registry, MeanOfBatch(), None) == [first], "it was examined again"
    assert store.check() == []


def test_an_honest_attack_is_recorded_without_a_word(registry: Registry, store: Store) -> None:
    assert record(store, registry, Climb(), batch_dependence) == []
    (row,) = store.evidence_of(BATCH_CHECK).values()
    assert row.finding == "clear"


def test_another_machine_and_another_digest_are_examined_again(
    registry: Registry, store: Store
) -> None:
    calls: list[str] = []

    def check(_: Registry, attack: Climb) -> Evidence:
        calls.append(attack.name)
        return Evidence(Finding.PASSED, "")

    changed = Climb()
    changed.steps = 9
    for attack, machine in ((Climb(), "a"), (Climb(), "b"), (changed, "a"), (Climb(), "a")):
        record(store, registry, attack, check, machine)
    assert len(calls) == 3


def test_an_attack_that_cannot_be_examined_stops_no_run(registry: Registry, store: Store) -> None:
    def check(_: Registry, attack: Climb) -> Evidence:
        raise RuntimeError("no images")

    assert record(store, registry, Climb(), check) == []
    (row,) = store.evidence_of(BATCH_CHECK).values()
    assert row.finding == "not tested" and "no images" in row.sentence


def test_built_in_attacks_and_those_that_do_not_apply_are_left_out(
    registry: Registry, store: Store
) -> None:
    record(store, registry, Climb(), None, reason="It needs scores.")
    known = extended(registry, "attack", Climb(), origin="built-in")
    threat, defense = known.threats["digits-linf"].value, known.defenses["linear"].value
    pairs = [PlannedPair(threat, defense, Climb())]
    record_batch_findings(store, known, pairs, batch_dependence, "here", lambda _: None)
    assert store.evidence_of(BATCH_CHECK) == {}

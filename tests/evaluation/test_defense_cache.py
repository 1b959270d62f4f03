"""The defense cache: each defense is built once, and missing weights are trained first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.engine.surrogate_iterates import SurrogateIterates
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.defense_cache import (
    DefenseCache,
    RecordedDefenseCache,
    TrainedElsewhereError,
)
from bench.evaluation.events import Event, TrainingElsewhere, TrainingProgress
from bench.evaluation.plan import PlannedPair, Selection
from bench.registry.registry import Registry
from bench.store import Store
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.tasks import training_task

CPU = RunSettings(torch.device("cpu"), 32)
SELECTION = Selection(("digits-linf",), ("linear",), ("transfer", "pgd"), examples=32)


@pytest.fixture
def registry() -> Registry:
    return Registry.without_submissions()


def pairs(registry: Registry) -> dict[str, PlannedPair]:
    return {pair.attack.name: pair for pair in plan.plan_pairs(registry, SELECTION)}


def test_a_defense_is_built_once_per_data_set_and_number_of_examples(registry: Registry) -> None:
    cache = DefenseCache(registry=registry, selection=SELECTION, settings=CPU)
    pair = pairs(registry)["pgd"]
    first = cache.defense(pair.defense, pair.threat)
    assert cache.defense(pair.defense, pair.threat) is first
    assert set(cache.built) == {("linear", "digits", 32)}


def test_only_transfer_attacks_have_a_surrogate(registry: Registry) -> None:
    cache = DefenseCache(registry=registry, selection=SELECTION, settings=CPU)
    assert cache.surrogate(pairs(registry)["pgd"]) is None
    surrogate = cache.surrogate(pairs(registry)["transfer"])
    built = cache.built["undefended", "digits", 32]
    assert surrogate is not None and surrogate.digest == built.digest
    assert surrogate.model().module is built.module
    assert len(surrogate.model().clean_logits) == 32


def test_iterates_on_a_surrogate_serve_every_defense_under_the_same_set(registry: Registry) -> None:
    """Right: one set of iterates for each attack, surrogate and set."""
    threats = ("digits-linf", "digits-l2", "digits-labels")
    names = ("linear", "weight-decay")
    attacks = ("transfer", "transfer-standard", "transfer-robust")
    selection = Selection(threats, names, attacks, examples=32)
    cache = DefenseCache(registry=registry, selection=selection, settings=CPU)
    found: dict[tuple[str, str], list[SurrogateIterates]] = {}
    for pair in plan.plan_pairs(registry, selection):
        surrogate = cache.surrogate(pair)
        if surrogate is not None:
            assert surrogate.iterates is not None
            key = pair.attack.name, repr(pair.threat.ball)
            found.setdefault(key, []).append(surrogate.iterates)
            cache.built.clear()
    assert len(found) == 2 * 3 == len({id(each[0]) for each in found.values()})
    assert all(each[0] is one for each in found.values() for one in each)
    assert max(len(each) for each in found.values()) == 4


def test_missing_weights_are_trained_first(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    events: list[Event] = []
    cache = DefenseCache(
        registry=registry, selection=SELECTION, settings=CPU, listener=events.append
    )
    pair = pairs(registry)["pgd"]
    cache.defense(pair.defense, pair.threat)
    assert events and all(isinstance(event, TrainingProgress) for event in events)


def test_a_training_of_another_worker_is_reported(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    events: list[Event] = []
    pair = pairs(registry)["pgd"]
    with pytest.raises(NeedsTraining) as need:
        DefenseBuilder(registry, "linear", registry.datasets["digits"].value).build()
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        assert (
            store.lease_task(training_task(need.value.recipe), "17@another-host#12345") is not None
        )
        cache = RecordedDefenseCache(
            registry=registry, selection=SELECTION, settings=CPU, listener=events.append,
            store=store, owner="me",
        )  # fmt: skip
        with pytest.raises(TrainedElsewhereError):
            cache.defense(pair.defense, pair.threat)
    (event,) = events
    assert isinstance(event, TrainingElsewhere) and event.defense == "linear"
    assert event.holder.startswith("process 17 on another-host (last heartbeat")


def test_the_digest_of_a_built_defense_is_recorded(registry: Registry, tmp_path: Path) -> None:
    pair = pairs(registry)["pgd"]
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        cache = RecordedDefenseCache(
            registry=registry, selection=SELECTION, settings=CPU, store=store, owner="me"
        )
        built = cache.defense(pair.defense, pair.threat)
        assert cache.digests() == {"linear": {"digits": built.digest}}
        assert store.examples(built.examples.digest).n == 32
        (cell,) = cache.unbuilt_cells([pair])
        assert cell.defense_digest.startswith("unbuilt ") and cell.items == 32
        assert cache.digests() == {"linear": {"digits": cell.defense_digest}}

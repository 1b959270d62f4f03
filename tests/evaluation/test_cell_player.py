"""The cell player: outcomes of a cell without a database, whole or in part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.core.outcomes import Outcomes
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.plan import PlannedPair, Selection
from bench.registry.registry import Registry
from bench.store import Store

CPU = RunSettings(torch.device("cpu"), 32)
SELECTION = Selection(("digits-linf",), ("linear", "noise-first"), ("fgsm", "pgd", "transfer"))


@pytest.fixture(scope="module")
def cache() -> DefenseCache:
    selection = replace(SELECTION, examples=96)
    registry = Registry.without_submissions()
    return DefenseCache(registry=registry, selection=selection, settings=CPU)


def planned(cache: DefenseCache, defense: str, attack: str) -> tuple[PlannedPair, BuiltDefense]:
    pairs = plan.plan_pairs(cache.registry, cache.selection)
    pair = next(p for p in pairs if (p.defense.name, p.attack.name) == (defense, attack))
    return pair, cache.defense(pair.defense, pair.threat)


def assert_equal(one: Outcomes, two: Outcomes) -> None:
    for name in Outcomes._fields:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_no_database_is_opened(cache: DefenseCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "__init__", None)
    pair, defense = planned(cache, "linear", "transfer")
    outcomes = CellPlayer().outcomes(pair, defense, cache.surrogate(pair))
    assert outcomes.item.tolist() == list(range(96))


@pytest.mark.parametrize("defense", ["linear", "noise-first"])
def test_a_part_of_a_cell_has_the_outcomes_of_the_whole(cache: DefenseCache, defense: str) -> None:
    pair, built = planned(cache, defense, "pgd")
    whole = CellPlayer().outcomes(pair, built)
    included = [3, 17, 64, 95]
    part = CellPlayer().outcomes(pair, built, included=included)
    assert part.item.tolist() == included
    assert_equal(part, Outcomes._make(column[included] for column in whole))


def test_finished_items_are_not_evaluated_again(cache: DefenseCache) -> None:
    pair, built = planned(cache, "linear", "fgsm")
    chunks = list(CellPlayer().chunks(pair, built, finished=range(90)))
    assert sorted(i for c in chunks for i in c.outcomes.item.tolist()) == list(range(90, 96))


def test_the_item_order_changes_no_outcome(cache: DefenseCache) -> None:
    pair, built = planned(cache, "linear", "pgd")
    backwards = CellPlayer(order=lambda count: list(range(count))[::-1])
    assert_equal(CellPlayer().outcomes(pair, built), backwards.outcomes(pair, built))


@pytest.mark.parametrize(("keep", "images"), [("none", 0), ("sample", 16), ("all", 96)])
def test_chunks_carry_the_images_that_are_kept(cache: DefenseCache, keep: str, images: int) -> None:
    pair, built = planned(cache, "linear", "fgsm")
    chunks = list(CellPlayer(keep).chunks(pair, built))
    kept = sum(len(chunk.images) for chunk in chunks)
    exact = sum(len(chunk.exact[0]) for chunk in chunks if chunk.exact is not None)
    assert (exact or kept) == images


def test_the_heartbeat_is_called_during_clean_pass_and_attack(cache: DefenseCache) -> None:
    cache.built.clear()
    pair, built = planned(cache, "linear", "pgd")
    beats: list[int] = []
    list(CellPlayer().chunks(pair, built, heartbeat=lambda: beats.append(1)))
    assert len(beats) > 2


def test_the_global_random_state_is_left_unchanged(cache: DefenseCache) -> None:
    pair, built = planned(cache, "noise-first", "fgsm")
    before = torch.random.get_rng_state()
    CellPlayer().outcomes(pair, built)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("defense", "attack", "group", "largest"),
    [
        ("linear", "pgd", 8, 8), ("linear", "pgd", 5, 5), ("linear", "transfer", 32, 32),
        ("noise-first", "pgd", 8, 96), ("linear", "fgsm", 200, 96),
    ],
)  # fmt: skip
def test_the_outcomes_do_not_depend_on_the_groups_in_which_they_are_committed(
    cache: DefenseCache, defense: str, attack: str, group: int, largest: int
) -> None:
    pair, built = planned(cache, defense, attack)
    surrogate = cache.surrogate(pair)
    whole = CellPlayer().outcomes(pair, built, surrogate)
    finished = [0, 41]
    chunks = list(CellPlayer().chunks(pair, built, surrogate, finished=finished, group=group))
    assert max(len(chunk.outcomes.item) for chunk in chunks) <= largest
    found = Outcomes.concatenate([chunk.outcomes for chunk in chunks])
    left = [item for item in range(96) if item not in finished]
    if defense == "linear":
        assert found.item.tolist() == left
    rows = np.isin(found.item, left)
    assert_equal(
        Outcomes._make(column[rows] for column in found),
        Outcomes._make(column[left] for column in whole),
    )

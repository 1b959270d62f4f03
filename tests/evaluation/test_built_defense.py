"""What a cell is made of: targets, keys, the surrogate's door; and which pairs may meet."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.cells import Numeric
from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes, Verdict
from bench.data import datasets
from bench.engine.runner import run_attack
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.plan import Selection
from bench.evaluation.targets import TARGET_RULES
from bench.plugin import Dataset, Randomness
from bench.referee.referee import judge
from bench.registry.registry import Registry
from bench.threats.access import Access
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal, ThreatModel
from bench.training.tasks import build_trained

CPU = RunSettings(torch.device("cpu"), 64)
BOARD = ThreatModel("here", "digits", Linf(Fraction(51, 255)))
CLEAN = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(200) % 10


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = Registry.load()
    for name in ("undefended", "linear"):
        build_trained(found, name, found.datasets["digits"].value)
    return found


def arena(registry: Registry, name: str, n: int = 64, seed: int = 0) -> BuiltDefense:
    digits: Dataset = registry.datasets["digits"].value
    defense = registry.find("defense", name).value
    return BuiltDefense(registry, defense, digits, datasets.first_examples(digits, n), CPU, seed)


def test_the_next_class_wraps_around() -> None:
    assert TARGET_RULES["next"](LABEL, CLEAN, 10, 0)[[0, 9]].tolist() == [1, 0]


def test_the_least_likely_class_is_never_the_label() -> None:
    target = TARGET_RULES["least-likely"](LABEL, CLEAN, 10, 0)
    for row in range(200):
        others = CLEAN[row].clone()
        others[LABEL[row]] = torch.inf
        assert target[row] == others.argmin() != LABEL[row]


def test_random_targets_are_keyed_uniform_and_never_the_label() -> None:
    target = TARGET_RULES["random"](LABEL, CLEAN, 10, 0)
    assert torch.equal(target[:50], TARGET_RULES["random"](LABEL[:50], CLEAN[:50], 10, 0))
    assert not torch.equal(target, TARGET_RULES["random"](LABEL, CLEAN, 10, 1))
    assert not (target == LABEL).any()
    many = TARGET_RULES["random"](
        torch.zeros(9000, dtype=torch.int64), torch.zeros(9000, 10), 10, 0
    )
    counts = torch.bincount(many, minlength=10)
    assert counts[0] == 0 and (counts[1:] - 1000).abs().max() < 150


def test_all_targets_are_every_other_class_once() -> None:
    target = TARGET_RULES["all"](LABEL, CLEAN, 10, 0).view(200, 9)
    for row in range(200):
        assert sorted([*target[row].tolist(), int(LABEL[row])]) == list(range(10))


def outcomes(arena: BuiltDefense, threat: ThreatModel, registry: Registry) -> Outcomes:
    attack = registry.find("attack", "pgd").value
    referee = arena.referee(threat, attack)
    attempts = run_attack(arena.game(threat, attack, None), referee.confirm)
    chunks = judge(attempts, referee, arena.answers(threat))
    return Outcomes.concatenate([chunk.outcomes for chunk in chunks])


def test_all_targets_are_played_one_by_one_and_each_success_hits_its_target(
    registry: Registry,
) -> None:
    here = arena(registry, "undefended", 20)
    threat = replace(BOARD, goal=Goal("targeted", "all"))
    found = outcomes(here, threat, registry)
    assert found.item.tolist() == list(range(180))
    assert here.cell(threat, registry.attacks["pgd"].value, "full", None).items == 180
    target = TARGET_RULES["all"](here.y, here.clean.logits, 10, 0).numpy()
    broken = found.verdict == Verdict.BROKEN
    assert 0 < broken.sum() < 180
    assert np.array_equal(found.label[broken], target[broken])


@pytest.mark.row("G02")
def test_reaching_a_target_is_no_easier_than_leaving_the_label(registry: Registry) -> None:
    here = arena(registry, "undefended")
    aimed = outcomes(here, replace(BOARD, goal=Goal("targeted", "next")), registry)
    free = outcomes(here, BOARD, registry)
    wrong = (aimed.verdict == Verdict.BROKEN).sum(), (free.verdict == Verdict.BROKEN).sum()
    assert 0 < wrong[0] < wrong[1]


def test_a_transfer_attack_asks_the_twin_and_ranks_rivals_by_it(registry: Registry) -> None:
    linear, surrogate = arena(registry, "linear"), arena(registry, "undefended")
    game = linear.game(BOARD, registry.attacks["transfer"].value, surrogate)
    assert game.model_access.module is surrogate.module and game.defense.module is linear.module
    assert torch.equal(game.clean_logits, surrogate.clean.logits)
    own = linear.game(BOARD, registry.attacks["pgd"].value, None)
    assert own.model_access.module is linear.module and torch.equal(own.clean_logits, linear.clean.logits)


def test_the_key_changes_with_everything_that_may_move_a_verdict(registry: Registry) -> None:
    pgd, fgsm = registry.attacks["pgd"].value, registry.attacks["fgsm"].value
    linear, other = arena(registry, "linear"), arena(registry, "undefended")
    keys = [
        linear.cell(BOARD, pgd, "full", None).key,
        linear.cell(BOARD, fgsm, "full", None).key,
        linear.cell(BOARD, pgd, "full", other).key,
        linear.cell(BOARD, pgd, "rank", None).key,
        linear.cell(replace(BOARD, ball=Linf(Fraction(50, 255))), pgd, "full", None).key,
        other.cell(BOARD, pgd, "full", None).key,
        arena(registry, "linear", 63).cell(BOARD, pgd, "full", None).key,
        arena(registry, "linear", seed=1).cell(BOARD, pgd, "full", None).key,
    ]
    assert len(set(keys)) == len(keys)
    renamed = replace(BOARD, name="elsewhere", summary="other words", order=7)
    assert linear.cell(renamed, pgd, "full", None).key == keys[0]


def test_the_referee_never_shares_the_copy_that_was_attacked(registry: Registry) -> None:
    here = arena(registry, "undefended")
    pgd = registry.attacks["pgd"].value
    asked = here.game(BOARD, pgd, None).model_access.module
    judging = here.referee(BOARD, pgd).fresh_model.model_access.module
    assert judging is not asked
    x: Tensor = here.x
    assert torch.equal(judging(x), asked(x))


@pytest.mark.parametrize(
    ("attack", "threat", "defense", "reason"),
    [
        ("pgd", replace(BOARD, access=Access.LABELS), "linear", "here reveals labels only"),
        ("boundary", BOARD, "linear", "boundary works in L2; here is Linf 1/5"),
        ("pgd", replace(BOARD, goal=Goal("nearest")), "linear", "does not shrink"),
        ("pgd-margin", replace(BOARD, goal=Goal("targeted", "next")), "linear", "serves"),
        ("transfer", BOARD, "undefended", "undefended is its own surrogate"),
        ("transfer", replace(BOARD, access=Access.LABELS), "linear", ""),
        ("random", replace(BOARD, access=Access.LABELS), "linear", ""),
        ("pgd", BOARD, "linear", ""),
    ],
)  # fmt: skip
def test_pairs_that_may_not_meet_say_why(
    registry: Registry, attack: str, threat: ThreatModel, defense: str, reason: str
) -> None:
    pair = (registry.find("defense", defense).value, registry.find("attack", attack).value)
    said = plan.why_not_applicable(threat, *pair)
    assert reason in said and bool(reason) == bool(said)


def test_every_defense_has_a_twin_that_transfer_attacks_can_ask(registry: Registry) -> None:
    """The built-in ones: on each data set that they serve."""
    for offer in registry.defenses.values():
        surrogate = registry.find("defense", offer.value.surrogate).value
        assert set(offer.value.datasets) <= set(surrogate.datasets), offer.value.name
        assert surrogate.randomness is None, offer.value.name


def pairs_beside(registry: Registry, **surrogate: Any) -> dict[str, plan.PlannedPair]:
    """By attack: `linear` on the digits, its surrogate changed so."""
    offer = registry.defenses["undefended"]
    other = replace(offer, value=replace(offer.value, **surrogate))
    here = replace(registry, defenses={**registry.defenses, "undefended": other})
    selection = Selection(("digits-linf",), ("linear",), ("random", "transfer"))
    return {pair.attack.name: pair for pair in plan.plan_pairs(here, selection)}


def test_a_twin_that_does_not_serve_the_data_stops_the_transfer_alone(registry: Registry) -> None:
    pairs = pairs_beside(registry, datasets=("mnist",))
    assert pairs["random"].reason == ""
    assert "asks its surrogate undefended, which serves mnist" in pairs["transfer"].reason
    assert pairs_beside(registry, datasets=("mnist", "digits"))["transfer"].reason == ""


def test_a_twin_that_answers_at_random_is_no_source(registry: Registry) -> None:
    """Its draws lie outside the keys: the same cell would come to other images."""
    pairs = pairs_beside(registry, randomness=Randomness())
    assert pairs["random"].reason == ""
    assert "asks its surrogate undefended, which answers at random" in pairs["transfer"].reason


def test_the_default_selection_is_the_embedded_boards_and_their_required_attacks(
    registry: Registry,
) -> None:
    pairs = plan.plan_pairs(registry, Selection())
    assert pairs and all(pair.required for pair in pairs)
    assert {pair.threat.dataset for pair in pairs} == {"digits"}
    assert pairs[0].threat.name == "digits-linf"
    quick = {name for name, offer in registry.defenses.items() if offer.value.quick}
    submitted = {n for n, offer in registry.defenses.items() if offer.origin == "submission"}
    assert {pair.defense.name for pair in pairs} == quick | submitted


def test_a_selection_without_a_fitting_defense_is_refused(registry: Registry) -> None:
    selection = Selection(threats=("mnist-linf",), defenses=("linear",))
    with pytest.raises(BenchError, match="none of the chosen defenses serves mnist"):
        plan.plan_pairs(registry, selection)


def test_arithmetic_is_part_of_a_cell_and_invents_no_success(registry: Registry) -> None:
    plain = arena(registry, "undefended")
    attack = registry.find("attack", "pgd").value
    keys = {plain.cell(BOARD, attack, "full", None).key}
    wanted = outcomes(plain, BOARD, registry)
    for numeric in (Numeric.FAST, Numeric.BFLOAT16):
        hasty = arena(registry, "undefended")
        hasty.setting = replace(CPU, numeric=numeric)
        assert "channels last" in hasty.quick.applied
        keys.add(hasty.cell(BOARD, attack, "full", None).key)
        found = outcomes(hasty, BOARD, registry)
        assert abs(int(found.verdict.sum()) - int(wanted.verdict.sum())) <= 2
        assert not (found.verdict > Verdict.BROKEN).any()
    assert len(keys) == 3


def test_the_nearest_success_is_sought_in_the_arithmetic_that_judges_it(
    registry: Registry,
) -> None:
    hasty = arena(registry, "undefended")
    hasty.setting = replace(CPU, numeric=Numeric.FAST)
    attack = registry.find("attack", "deepfool").value
    assert hasty.game(BOARD, attack, None).model_access.module is hasty.quick.module
    assert hasty.form(BOARD, registry.find("attack", "transfer").value).module is hasty.module
    nearest = replace(BOARD, goal=Goal("nearest"))
    assert hasty.game(nearest, attack, None).model_access.module is hasty.module


def test_a_defense_with_a_stand_in_is_asked_as_it_was_built(registry: Registry) -> None:
    hasty = arena(registry, "bit-depth")
    hasty.setting = replace(CPU, numeric=Numeric.BFLOAT16)
    assert hasty.quick.module is hasty.module
    assert hasty.quick.notes == ("plain float32: it declares a stand-in.",)

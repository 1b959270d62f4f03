"""A built defense: items and targets, cell keys, model access, the fresh model of the referee."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.cells import Numeric
from bench.core.errors import PluginError
from bench.core.outcomes import Outcomes, Verdict
from bench.data import datasets
from bench.engine.runner import run_attack
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.surrogate_model import SurrogateModel
from bench.evaluation.targets import TARGET_FUNCTIONS
from bench.plugin import Access, Dataset, Problem, cross_entropy
from bench.referee.referee import judge
from bench.registry.registry import Registry
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal, ThreatModel
from bench.training.defense_builder import DefenseBuilder
from bench.training.tasks import build_trained

CPU = RunSettings(torch.device("cpu"), 64)
THREAT = ThreatModel("here", "digits", Linf(Fraction(51, 255)))


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = Registry.load()
    for name in ("undefended", "linear"):
        build_trained(found, name, found.datasets["digits"].value)
    return found


def build(
    registry: Registry, name: str, n: int = 64, seed: int = 0, settings: RunSettings = CPU
) -> BuiltDefense:
    digits: Dataset = registry.datasets["digits"].value
    builder = DefenseBuilder(registry, name, digits)
    return BuiltDefense(builder, datasets.first_examples(digits, n), settings, seed)


def outcomes(built: BuiltDefense, threat: ThreatModel, registry: Registry) -> Outcomes:
    attack = registry.find("attack", "pgd").value
    referee = built.referee(threat, attack)
    candidates = run_attack(built.cell_spec(threat, attack, None), referee.confirm)
    chunks = judge(candidates, referee, built.clean_answers(threat))
    return Outcomes.concatenate([chunk.outcomes for chunk in chunks])


def test_every_wrong_class_is_an_item_and_each_success_reaches_its_target(
    registry: Registry,
) -> None:
    built = build(registry, "undefended", 20)
    threat = replace(THREAT, goal=Goal("targeted", "all"))
    found = outcomes(built, threat, registry)
    assert found.item.tolist() == list(range(180))
    assert built.cell(threat, registry.attacks["pgd"].value, "full", None).items == 180
    target = TARGET_FUNCTIONS["all"](built.y, built.clean.logits, 10, 0).numpy()
    broken = found.verdict == Verdict.BROKEN
    assert 0 < broken.sum() < 180
    assert np.array_equal(found.label[broken], target[broken])


@pytest.mark.row("G02")
def test_a_targeted_goal_is_no_easier_than_an_untargeted_one(registry: Registry) -> None:
    built = build(registry, "undefended")
    targeted = outcomes(built, replace(THREAT, goal=Goal("targeted", "next")), registry)
    untargeted = outcomes(built, THREAT, registry)
    broken = [int((f.verdict == Verdict.BROKEN).sum()) for f in (targeted, untargeted)]
    assert 0 < broken[0] < broken[1]


def test_a_transfer_attack_queries_the_surrogate_and_orders_classes_by_its_logits(
    registry: Registry,
) -> None:
    linear, surrogate = build(registry, "linear"), build(registry, "undefended")
    queried = surrogate.as_surrogate().model()
    spec = linear.cell_spec(THREAT, registry.attacks["transfer"].value, queried)
    assert spec.model_access.module is surrogate.module and spec.defense.module is linear.module
    assert torch.equal(spec.clean_logits, surrogate.clean.logits)
    assert isinstance(queried, SurrogateModel)
    own = linear.cell_spec(THREAT, registry.attacks["pgd"].value, None)
    assert own.model_access.module is linear.module
    assert torch.equal(own.clean_logits, linear.clean.logits)


def test_the_key_changes_with_everything_that_may_change_a_verdict(registry: Registry) -> None:
    pgd, fgsm = registry.attacks["pgd"].value, registry.attacks["fgsm"].value
    linear, other = build(registry, "linear"), build(registry, "undefended")
    keys = [
        linear.cell(THREAT, pgd, "full", None).key,
        linear.cell(THREAT, fgsm, "full", None).key,
        linear.cell(THREAT, pgd, "full", other.as_surrogate()).key,
        linear.cell(THREAT, pgd, "rank", None).key,
        linear.cell(replace(THREAT, ball=Linf(Fraction(50, 255))), pgd, "full", None).key,
        other.cell(THREAT, pgd, "full", None).key,
        build(registry, "linear", 63).cell(THREAT, pgd, "full", None).key,
        build(registry, "linear", seed=1).cell(THREAT, pgd, "full", None).key,
    ]
    assert len(set(keys)) == len(keys)
    renamed = replace(THREAT, name="elsewhere", summary="other words", order=7)
    assert linear.cell(renamed, pgd, "full", None).key == keys[0]


def test_the_referee_has_another_copy_of_the_model_than_the_attack(registry: Registry) -> None:
    built = build(registry, "undefended")
    pgd = registry.attacks["pgd"].value
    attacked = built.cell_spec(THREAT, pgd, None).model_access.module
    judging = built.referee(THREAT, pgd).fresh_model.model_access.module
    assert judging is not attacked
    x: Tensor = built.x[:]
    assert torch.equal(judging(x), attacked(x))


def test_arithmetic_is_part_of_the_key_and_adds_no_success(registry: Registry) -> None:
    plain = build(registry, "undefended")
    attack = registry.find("attack", "pgd").value
    keys = {plain.cell(THREAT, attack, "full", None).key}
    wanted = outcomes(plain, THREAT, registry)
    for numeric in (Numeric.FAST, Numeric.BFLOAT16):
        fast = build(registry, "undefended", settings=replace(CPU, numeric=numeric))
        assert "channels last" in fast.fast_model.applied
        keys.add(fast.cell(THREAT, attack, "full", None).key)
        found = outcomes(fast, THREAT, registry)
        assert abs(int(found.verdict.sum()) - int(wanted.verdict.sum())) <= 2
        assert not (found.verdict > Verdict.BROKEN).any()
    assert len(keys) == 3


def test_the_nearest_adversarial_example_is_searched_in_the_referees_arithmetic(
    registry: Registry,
) -> None:
    fast = build(registry, "undefended", settings=replace(CPU, numeric=Numeric.FAST))
    attack, transfer = (registry.find("attack", n).value for n in ("deepfool", "transfer"))
    spec = fast.cell_spec(THREAT, attack, None)
    assert spec.model_access.module is fast.fast_model.module
    assert fast.attacked_model(THREAT, transfer).module is fast.module
    nearest = replace(THREAT, goal=Goal("nearest"))
    assert fast.cell_spec(nearest, attack, None).model_access.module is fast.module


def test_a_defense_with_a_bpda_approximation_has_no_faster_form(registry: Registry) -> None:
    built = build(registry, "bit-depth", settings=replace(CPU, numeric=Numeric.BFLOAT16))
    assert built.fast_model.module is built.module
    assert built.fast_model.notes == ("plain float32: it declares a BPDA approximation.",)


def test_the_clean_pass_is_computed_once_with_heartbeats_between_its_groups(
    registry: Registry,
) -> None:
    built, beats = build(registry, "linear", 129), list[int]()
    first = built.clean_pass(lambda: beats.append(1))
    assert len(beats) == 2, "129 images are three groups of 64"
    assert built.clean_pass(lambda: beats.append(1)) is first is built.clean
    assert len(beats) == 2


class Greedy:
    """Asks for more than it declares."""

    name, steps = "greedy", 1

    def __init__(self, needs: Access, asks: str) -> None:
        self.needs, self.asks = needs, asks

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, state: Tensor) -> Tensor:
        if self.asks == "gradients":
            problem.gradient(state, cross_entropy)
        else:
            getattr(problem, "logits" if self.asks == "scores" else "labels")(state)
        return state


@pytest.mark.parametrize(
    ("needs", "asks"),
    [(Access.SCORES, "gradients"), (Access.LABELS, "scores"), (Access.NOTHING, "labels")],
)
def test_an_attack_gets_no_more_access_than_it_declares(
    registry: Registry, needs: Access, asks: str
) -> None:
    built = build(registry, "linear")
    attack = Greedy(needs, asks)
    expected = f"greedy requested {asks}, but its declared `needs` reveals"
    with pytest.raises(PluginError, match=expected):
        list(
            run_attack(built.cell_spec(THREAT, attack, None), built.referee(THREAT, attack).confirm)
        )
    honest = Greedy(Access(int(needs) + 1), asks)
    list(run_attack(built.cell_spec(THREAT, honest, None), built.referee(THREAT, honest).confirm))

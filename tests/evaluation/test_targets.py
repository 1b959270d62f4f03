"""Target classes: every rule gives a class that is not the label, the same one on every run."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from bench.core.cells import Culprit
from bench.core.errors import BenchError
from bench.evaluation import plan
from bench.evaluation.failures import failure_of
from bench.evaluation.plan import Selection
from bench.evaluation.targets import TARGET_FUNCTIONS, target_classes, why_no_target
from bench.plugin import Goal, Linf, ThreatModel
from bench.registry.registration import Registration
from bench.registry.registry import Registry

CLEAN_LOGITS = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(200) % 10


def test_the_next_class_wraps_around() -> None:
    assert TARGET_FUNCTIONS["next"](LABEL, CLEAN_LOGITS, 10, 0)[[0, 9]].tolist() == [1, 0]


def test_the_least_likely_class_is_never_the_label() -> None:
    target = TARGET_FUNCTIONS["least-likely"](LABEL, CLEAN_LOGITS, 10, 0)
    for row in range(200):
        others = CLEAN_LOGITS[row].clone()
        others[LABEL[row]] = torch.inf
        assert target[row] == others.argmin() != LABEL[row]


def test_random_targets_are_keyed_uniform_and_never_the_label() -> None:
    target = TARGET_FUNCTIONS["random"](LABEL, CLEAN_LOGITS, 10, 0)
    assert torch.equal(
        target[:50], TARGET_FUNCTIONS["random"](LABEL[:50], CLEAN_LOGITS[:50], 10, 0)
    )
    assert not torch.equal(target, TARGET_FUNCTIONS["random"](LABEL, CLEAN_LOGITS, 10, 1))
    assert not (target == LABEL).any()
    zeros = torch.zeros(9000, dtype=torch.int64)
    many = TARGET_FUNCTIONS["random"](zeros, torch.zeros(9000, 10), 10, 0)
    counts = torch.bincount(many, minlength=10)
    assert counts[0] == 0 and (counts[1:] - 1000).abs().max() < 150


def test_the_rule_all_gives_every_other_class_once() -> None:
    target = TARGET_FUNCTIONS["all"](LABEL, CLEAN_LOGITS, 10, 0).view(200, 9)
    for row in range(200):
        assert sorted([*target[row].tolist(), int(LABEL[row])]) == list(range(10))


@pytest.mark.parametrize("rule", TARGET_FUNCTIONS)
@pytest.mark.parametrize("classes", [0, 1])
def test_a_targeted_goal_needs_two_classes(rule: str, classes: int) -> None:
    threat = ThreatModel("aimed", "portraits", Linf(Fraction(1, 10)), goal=Goal("targeted", rule))
    zeros = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(BenchError, match=r"aimed is targeted and needs two classes") as error:
        target_classes(threat, zeros, torch.zeros(6, classes), classes, 0)
    failure = failure_of(error.value)
    assert failure.culprit is Culprit.USER and "portraits has" in failure.reason
    assert why_no_target(threat, 2) == ""
    assert why_no_target(replace(threat, goal=Goal()), 1) == ""
    two = target_classes(threat, zeros, torch.tensor([[0.0, 1.0]]).expand(6, 2), 2, 0)
    assert two.tolist() == [1] * 6


@pytest.mark.parametrize("rule", TARGET_FUNCTIONS)
def test_a_selection_with_a_target_and_one_class_is_refused_before_anything_is_evaluated(
    rule: str,
) -> None:
    registry = Registry.without_submissions()
    one = replace(registry.datasets["digits"].value, name="portraits", classes=("face",))
    aimed = ThreatModel("aimed", "portraits", Linf(Fraction(1, 10)), goal=Goal("targeted", rule))
    plain = replace(aimed, name="plain", goal=Goal())
    defense = replace(registry.defenses["linear"].value, name="mine", datasets=("portraits",))
    tables: list[tuple[dict[str, Any], Any]] = [
        (registry.datasets, one), (registry.threats, aimed), (registry.threats, plain),
        (registry.defenses, defense),
    ]  # fmt: skip
    for table, value in tables:
        table[value.name] = Registration(value, "entry-point", "tests", "0" * 64)
    with pytest.raises(BenchError, match="portraits has 1 class: choose"):
        plan.plan_pairs(registry, Selection(("aimed", "plain"), ("mine",), ("pgd",)))
    pairs = plan.plan_pairs(registry, Selection(("plain",), ("mine",), ("pgd",)))
    assert [pair.threat.name for pair in pairs] == ["plain"]
    both = plan.selected_threats(registry, Selection(("all",), ("mine",), ("pgd",)))
    assert {"plain"} <= {threat.name for threat in both} and aimed not in both

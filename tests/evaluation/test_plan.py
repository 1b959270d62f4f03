"""The plan: which cells a selection has, and why an attack does not apply to a defense."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from bench.core.errors import BenchError
from bench.evaluation import plan
from bench.evaluation.plan import Selection
from bench.plugin import Access, Defense, Randomness
from bench.registry.registry import Registry
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal, ThreatModel
from plugins.attacks.joint_pgd import JointPGD
from plugins.attacks.pgd import PGD
from tests.fixtures.known_models import small_cnn
from tests.fixtures.rejecting_defenses import (
    BALL,
)

THREAT = ThreatModel("here", "digits", Linf(Fraction(51, 255)))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize(
    ("attack", "threat", "defense", "reason"),
    [
        ("pgd", replace(THREAT, access=Access.LABELS), "linear", "here reveals labels only"),
        ("boundary", THREAT, "linear", "boundary works in L2; here is Linf 1/5"),
        ("pgd", replace(THREAT, goal=Goal("nearest")), "linear", "does not minimise"),
        ("pgd-margin", replace(THREAT, goal=Goal("targeted", "next")), "linear", "supports"),
        ("transfer", THREAT, "undefended", "undefended is its own surrogate"),
        ("transfer", replace(THREAT, access=Access.LABELS), "linear", ""),
        ("random", replace(THREAT, access=Access.LABELS), "linear", ""),
        ("pgd", THREAT, "linear", ""),
    ],
)  # fmt: skip
def test_an_attack_that_does_not_apply_is_named_with_the_reason(
    registry: Registry, attack: str, threat: ThreatModel, defense: str, reason: str
) -> None:
    pair = (registry.find("defense", defense).value, registry.find("attack", attack).value)
    found = plan.why_not_applicable(threat, *pair)
    assert reason in found and bool(reason) == bool(found)


def test_every_built_in_defense_has_a_deterministic_surrogate_on_its_data_sets(
    registry: Registry,
) -> None:
    for registration in registry.defenses.values():
        defense = registration.value
        surrogate = registry.find("defense", defense.surrogate).value
        assert set(defense.datasets) <= set(surrogate.datasets), defense.name
        assert surrogate.randomness is None, defense.name


def pairs_with_surrogate(registry: Registry, **changes: Any) -> dict[str, plan.PlannedPair]:
    """Attack -> pair with `linear` on the digits, its surrogate's record changed."""
    registration = registry.defenses["undefended"]
    other = replace(registration, value=replace(registration.value, **changes))
    here = replace(registry, defenses={**registry.defenses, "undefended": other})
    selection = Selection(("digits-linf",), ("linear",), ("random", "transfer"))
    return {pair.attack.name: pair for pair in plan.plan_pairs(here, selection)}


def test_a_surrogate_for_other_data_excludes_only_the_transfer_attack(registry: Registry) -> None:
    pairs = pairs_with_surrogate(registry, datasets=("mnist",))
    assert pairs["random"].reason == ""
    assert (
        "queries the surrogate undefended, which is declared for mnist" in pairs["transfer"].reason
    )
    assert pairs_with_surrogate(registry, datasets=("mnist", "digits"))["transfer"].reason == ""


def test_a_randomized_surrogate_excludes_only_the_transfer_attack(registry: Registry) -> None:
    """Its draws are not keyed: the same cell would have other adversarial images on every run."""
    pairs = pairs_with_surrogate(registry, randomness=Randomness())
    assert pairs["random"].reason == ""
    reason = pairs["transfer"].reason
    assert "queries the surrogate undefended, which is randomized" in reason


def test_the_default_is_the_embedded_data_with_the_required_attacks_and_quick_defenses(
    registry: Registry,
) -> None:
    pairs = plan.plan_pairs(registry, Selection())
    assert pairs and all(pair.required for pair in pairs)
    assert {pair.threat.dataset for pair in pairs} == {"digits"}
    assert pairs[0].threat.name == "digits-linf"
    quick = {name for name, found in registry.defenses.items() if found.value.quick}
    submitted = {n for n, found in registry.defenses.items() if found.origin == "submission"}
    assert {pair.defense.name for pair in pairs} == quick | submitted


def test_a_selection_without_a_fitting_defense_is_refused(registry: Registry) -> None:
    selection = Selection(threats=("mnist-linf",), defenses=("linear",))
    with pytest.raises(BenchError, match="none of the chosen defenses is declared for mnist"):
        plan.plan_pairs(registry, selection)


def test_a_joint_attack_applies_to_rejecting_defenses_only() -> None:
    threat = ThreatModel("threat", "digits", BALL)
    plain = Defense("plain", lambda loader: small_cnn())
    guarded = replace(plain, name="guarded", rejects=0.05)
    assert "plain has no detector" in plan.why_not_applicable(threat, plain, JointPGD())
    assert plan.why_not_applicable(threat, guarded, JointPGD()) == ""
    assert plan.why_not_applicable(threat, guarded, PGD()) == ""


def test_patterns_and_variants_name_attacks(registry: Registry) -> None:
    threat = registry.find("threat", "digits-linf").value
    chosen = Selection(attacks=("pgd-r*", "pgd[steps=7]", "pgd[steps=40]", "pgd"))
    names = [attack.name for attack in plan.selected_attacks(registry, chosen, threat)]
    assert names == ["pgd-rescaled", "pgd-restarts", "pgd[steps=7]", "pgd"]
    with pytest.raises(BenchError, match="the pattern 'pdg\\*' matches none of "):
        plan.selected_attacks(registry, Selection(attacks=("pdg*",)), threat)


def test_patterns_and_variants_name_threat_models(registry: Registry) -> None:
    chosen = Selection(("digits-l?[eps=0.3]",), ("linear",), ("pgd",))
    with pytest.raises(BenchError, match="has no setting"):
        plan.selected_threats(registry, replace(chosen, threats=("digits-l?[size=1]",)))
    names = [threat.name for threat in plan.selected_threats(registry, chosen)]
    assert names == ["digits-l2[eps=0.3]", "digits-l1[eps=0.3]"]


def test_variants_are_selected_by_radius_and_are_no_pattern(registry: Registry) -> None:
    names = ("digits-linf[eps=16/255]", "digits-linf[eps=8/255]", "digits-linf[eps=0.2]")
    selection = Selection(names, ("linear",))
    assert [t.name for t in plan.selected_threats(registry, selection)] == [
        "digits-linf", "digits-linf-half", "digits-linf-double", names[1], names[0],
    ]  # fmt: skip
    assert plan.named_threats(registry, selection) == {"digits-linf", *names[:2]}
    everything = {t.name for t in plan.selected_threats(registry, Selection(("digits-linf*",)))}
    assert not {name for name in everything if "[" in name}


def test_every_radius_of_a_curve_meets_the_same_attacks(registry: Registry) -> None:
    names = ("digits-linf[eps=0.05]", "digits-linf[eps=0.1]", "digits-linf")
    selection = Selection(names, ("undefended",))
    required = registry.find("threat", "digits-linf").value.protocol.required
    for threat in plan.selected_threats(registry, selection):
        attacks = {attack.name for attack in plan.selected_attacks(registry, selection, threat)}
        expected = {"pgd"} if threat.name == "digits-linf-double" else set(required)
        assert attacks >= expected and ("fgsm" in attacks) == ("fgsm" in expected)
    (half,) = plan.selected_threats(registry, Selection(("digits-linf-half",), attacks=("fgsm",)))
    attacks = {a.name for a in plan.selected_attacks(registry, Selection((half.name,)), half)}
    assert "fgsm" not in attacks, "named by its own name it asks for what its protocol asks"

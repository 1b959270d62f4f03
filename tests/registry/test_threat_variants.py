"""Variants of threat models: one name for one set of rules, unranked, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from bench.core.errors import BenchError
from bench.evaluation.memory_plugins import memory_registry
from bench.registry.cards import threat_card
from bench.registry.registry import Registry
from bench.threats.norms import L2, Linf
from bench.threats.threat_model import ThreatModel


class Patch(Linf):
    """A perturbation set of a plugin."""

    name = "patch"


@pytest.fixture
def registry() -> Registry:
    return memory_registry()


def found(registry: Registry, name: str) -> ThreatModel:
    value: ThreatModel = registry.find("threat", name).value
    return value


def test_another_radius_has_an_id_a_name_and_no_ranks(registry: Registry) -> None:
    base, other = found(registry, "digits-linf"), found(registry, "digits-linf[eps=4/255]")
    assert other.ball == Linf(Fraction(4, 255)) and base.ball == Linf(Fraction(1, 5))
    assert other.name == "digits-linf[eps=4/255]" in registry.threats
    assert other.id != base.id
    rules = {**base.rules(), "set": other.rules()["set"]}
    assert other.rules() == rules, "nothing else of the rules differs"
    assert other.protocol.required == base.protocol.required
    assert other.protocol.surrogates == base.protocol.surrogates
    assert not other.protocol.ranked and base.protocol.ranked
    assert not other.protocol.evidence and not other.protocol.follow_ups
    assert other.order > max(one.value.order for n, one in registry.threats.items() if n[-1] != "]")


@pytest.mark.parametrize(
    "name",
    ["digits-linf[eps=4/255]", "digits-linf[ eps = 0.01568627450980392 ]",
     "digits-linf[norm=Linf,eps=4/255]", "digits-linf-half[eps=4/255]",
     "digits-l2[norm=Linf,eps=4/255]"],
)  # fmt: skip
def test_one_set_of_rules_has_one_name(registry: Registry, name: str) -> None:
    assert found(registry, name).name == "digits-linf[eps=4/255]"
    assert found(registry, name) is found(registry, "digits-linf[eps=4/255]")


@pytest.mark.parametrize(
    ("name", "registered"),
    [
        ("digits-linf[eps=51/255]", "digits-linf"),
        ("digits-linf[eps=0.1]", "digits-linf-half"),
        ("digits-linf[norm=L2]", "digits-l2"),
        ("digits-linf[norm=L2,eps=1]", "digits-l2"),
        ("digits-l2[norm=L2]", "digits-l2"),
        ("cifar10-linf[norm=L2]", "cifar10-l2"),
        ("digits-labels[eps=1]", "digits-labels"),
    ],
)
def test_rules_that_are_registered_are_that_threat_model(
    registry: Registry, name: str, registered: str
) -> None:
    assert registry.find("threat", name) is registry.threats[registered]


def test_another_norm_has_the_protocol_of_the_data_set_in_that_norm(registry: Registry) -> None:
    other = found(registry, "digits-linf[norm=L2,eps=0.3]")
    assert (other.name, other.ball) == ("digits-l2[eps=0.3]", L2(Fraction(3, 10)))
    assert other.protocol.required == found(registry, "digits-l2").protocol.required
    alone = found(registry, "mnist-linf[norm=L2,eps=2]")
    assert (alone.name, alone.ball) == ("mnist-linf[norm=L2,eps=2]", L2(Fraction(2)))
    assert alone.protocol.required == found(registry, "mnist-linf").protocol.required


def test_access_goal_and_budget_stay(registry: Registry) -> None:
    labels, other = found(registry, "digits-labels"), found(registry, "digits-labels[eps=0.5]")
    assert (other.access, other.budget) == (labels.access, labels.budget)
    assert found(registry, "digits-targeted[eps=0.1]").goal.rule == "next"
    assert found(registry, "digits-targeted[eps=0.1]").id != found(registry, "digits-linf-half").id


def test_the_card_states_the_rules(registry: Registry) -> None:
    card = threat_card(registry.find("threat", "digits-linf[eps=4/255]"))
    assert (card.set["eps"], card.id) == ("4/255", card.digest)
    assert not card.protocol.ranked and "up to 4/255" in card.summary


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-linf[eps=much]", "eps is 'much'; a number such as 8/255 was expected."),
        ("digits-linf[eps=-1]", "must not be negative"),
        ("digits-linf[norm=L3,eps=1]", "norm is 'L3'; use one of Linf, L2, L1."),
        ("digits-linf[norm=L3]", "norm is 'L3'; use one of Linf, L2, L1."),
        ("mnist-linf[norm=L2]", "give a radius in L2 as well, with eps"),
        ("digits-linf[ep=1]", "digits-linf has no setting 'ep'"),
        ("digits-linf[]", "the threat 'digits-linf[]' cannot be read"),
        (
            "digits-linf[eps=1,eps=2]",
            "write each parameter once, as in digits-linf[eps=8/255].",
        ),
        ("no-such[eps=1]", "no threat named 'no-such'."),
    ],
)
def test_a_wrong_variant_of_a_threat_model_is_refused_in_a_sentence(
    registry: Registry, name: str, message: str
) -> None:
    before = set(registry.threats)
    with pytest.raises(BenchError) as refused:
        registry.find("threat", name)
    assert message in str(refused.value)
    assert set(registry.threats) == before


def test_a_set_of_a_plugin_has_no_variants(registry: Registry) -> None:
    base = registry.threats["digits-linf"]
    own = replace(base.value, name="own", ball=Patch(Fraction(1, 5)))
    registry.threats["own"] = replace(base, value=own)
    with pytest.raises(
        BenchError,
        match="set patch of its own; only norm balls have variants",
    ):
        registry.find("threat", "own[eps=0.1]")

"""Variants of attacks: names with parameters, their types, and what is refused."""

from __future__ import annotations

import pytest

from bench.core.errors import BenchError
from bench.evaluation.memory_plugins import memory_registry
from bench.registry.cards import attack_digest
from bench.registry.registry import Registry
from bench.registry.variants import parameter_types, variant
from plugins.attacks.pgd import PGD


@pytest.fixture
def registry() -> Registry:
    return memory_registry()


def test_a_variant_has_its_parameters_a_name_and_a_digest_of_its_own(registry: Registry) -> None:
    base, found = registry.find("attack", "pgd"), registry.find("attack", "pgd[steps=7,rate=2]")
    assert found.value == PGD(steps=7, rate=2.0)
    assert found.value.name == "pgd[steps=7,rate=2.0]" in registry.attacks
    assert base.value.name == "pgd"
    assert attack_digest(found) != attack_digest(base)


def test_the_order_and_the_writing_of_parameters_do_not_matter(registry: Registry) -> None:
    one = registry.find("attack", "pgd[steps=7,rate=2]")
    assert registry.find("attack", "pgd[rate=2.0, steps=7]") is one
    assert variant(registry.find("attack", "pgd"), {"rate": 2.0, "steps": 7}) == one


def test_values_that_are_there_already_give_the_attack_itself(registry: Registry) -> None:
    assert registry.find("attack", "pgd[steps=40]") is registry.find("attack", "pgd")
    assert registry.find("attack", "pgd[steps=40,rate=2]").value.name == "pgd[rate=2.0]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd[step=1]", "pgd has no parameter 'step' to set. Did you mean 'steps'?"),
        ("pgd[steps=0]", "the attack pgd[steps=0] has steps = 0; at least one is needed."),
        ("pgd[steps=1.5]", "the parameter steps of pgd came as '1.5'; it should be a valid int"),
        ("pgd[rate=nan]", "the parameter rate of pgd came as 'nan'; it should be a finite number"),
        ("pgd[random_start=maybe]", "it should be a valid boolean"),
        ("apgd-ce[loss=hinge]", "it should be 'cross-entropy', 'dlr' or 'targeted dlr'"),
        ("apgd-ce[summary=best]", "apgd-ce has no parameter 'summary' to set."),
        ("pgd[name=best]", "pgd has no parameter 'name' to set."),
        ("pgd[]", "cannot be read; write each parameter once, as in pgd[steps=100]."),
        ("pgd[steps=1,steps=2]", "cannot be read"),
        ("pgd[steps=1", "cannot be read"),
        ("pgd[steps=1]]", "cannot be read"),
        ("no-such[steps=1]", "no attack named 'no-such'."),
    ],
)
def test_a_wrong_variant_is_refused_in_a_sentence(
    registry: Registry, name: str, message: str
) -> None:
    with pytest.raises(BenchError) as refused:
        registry.find("attack", name)
    assert message in str(refused.value)
    assert name not in registry.attacks


def test_numbers_from_python_are_not_converted(registry: Registry) -> None:
    for value in (True, 7.5, None):
        with pytest.raises(BenchError, match="the parameter steps of pgd came as"):
            variant(registry.find("attack", "pgd"), {"steps": value})


def test_only_attacks_have_variants(registry: Registry) -> None:
    with pytest.raises(BenchError, match="no defense named"):
        registry.find("defense", "undefended[steps=1]")


def test_what_names_an_attack_is_no_parameter(registry: Registry) -> None:
    for registration in registry.attacks.values():
        assert not {"name", "needs", "norms", "source"} & set(parameter_types(registration.value))

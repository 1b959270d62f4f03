"""The lists of planted cases: names, numbers and kinds."""

from __future__ import annotations

from collections import Counter

from bench.registry.registry import Registry
from tests.planted.cases import PREFIX
from tests.planted.playing import installed, load_registry
from tests.planted.plugin import CASES

BY_NAME = {case.name: case for case in CASES}


def test_names_are_unique_and_cannot_be_those_of_other_plugins() -> None:
    assert len(BY_NAME) == len(CASES)
    assert all(name.startswith(PREFIX) for name in BY_NAME)


def test_there_are_enough_of_both() -> None:
    assert sum(not case.honest for case in CASES) >= 40
    assert sum(case.honest for case in CASES) >= 20


def test_nearly_every_fault_has_two_cases() -> None:
    groups = Counter(case.group for case in CASES if case.defense is not None and case.group)
    assert {name for name, count in groups.items() if count < 2} <= {
        "constant gradients", "shattered gradients", "probabilities", "8-bit detection",
        "call frequency", "not monotone in eps",
    }  # fmt: skip


def test_every_case_is_registered() -> None:
    with installed():
        registry: Registry = load_registry()
    defenses = {case.name for case in CASES if case.defense is not None}
    attacks = {case.name for case in CASES if case.attack is not None}
    assert defenses <= set(registry.defenses) and attacks <= set(registry.attacks)

"""Type checks of registered records and attributes: a wrong one refuses that plugin alone.

Covers bench.registry.registration too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.plugin import Claim, Defense, Recipe
from bench.registry.registry import Registry
from bench.registry.validation import why_invalid
from tests.fixtures.known_models import small_cnn
from tests.fixtures.planted_plugins import ATTACK, planted_registry

DEFENSE = "@hookimpl\ndef bench_defenses():\n    yield Defense('odd', lambda loader: 0, {})\n"
RECIPE = "recipe=Recipe(lambda shape, classes: 0, {})"
THREAT = (
    "@hookimpl\ndef bench_threat_models():\n"
    "    yield ThreatModel(**{{'name': 'odd', 'dataset': 'd', 'ball': Linf(Fraction(1))}} | {})\n"
)
DATASET = (
    "@hookimpl\ndef bench_datasets():\n"
    "    yield Dataset(**{{'name': 'odd', 'classes': ('a',), 'shape': (1, 8, 8), "
    "'load': len, 'test_size': 9}} | {})\n"
)
ABSENT = "@hookimpl\ndef bench_attacks():\n    yield MissingLibrary({}, 'library')\n"
TOOL = (
    "class Odd:\n    name = 'odd'\n    {}\n    def examine(self): ...\n"
    "@hookimpl\ndef bench_diagnostics():\n    yield Odd()\n"
)


def attack(line: str) -> str:
    return ATTACK.format(name="odd").replace("steps = 1", f"steps = 1\n    {line}")


WRONG: list[tuple[str, str]] = [
    (DEFENSE.format("claims=None"), "has claims = None; it should be a valid tuple."),
    (DEFENSE.format("claims=[Claim('t', 0.5)]"), "; it should be a valid tuple."),
    (
        DEFENSE.format("claims=(Claim('t', 'x'),)"),
        "has claims.0.robust = 'x'; it should be a valid",
    ),
    (DEFENSE.format("datasets=5"), "has datasets = 5; it should be a valid tuple."),
    (DEFENSE.format("datasets='digits'"), "has datasets = 'digits'; it should be a valid tuple."),
    (DEFENSE.format("summary=None"), "has summary = None; it should be a valid string."),
    (DEFENSE.format("forwards='x'"), "has forwards = 'x'; it should be a valid integer."),
    (DEFENSE.format("forwards=True"), "has forwards = True; it should be a valid integer."),
    (
        DEFENSE.format("build=5").replace("lambda loader: 0, ", ""),
        "has build = 5; it should be callable.",
    ),
    (DEFENSE.format("bpda=5"), "has bpda = 5; it should be callable."),
    (DEFENSE.format("randomness=5"), "has randomness = 5; it should be an instance of Randomness."),
    (
        DEFENSE.format("randomness=Randomness('x')"),
        "has randomness.draws = 'x'; it should be a valid integer.",
    ),
    (DEFENSE.format("quick=1"), "has quick = 1; it should be a valid boolean."),
    (
        DEFENSE.format(RECIPE.format("epochs='x'")),
        "has recipe.epochs = 'x'; it should be a valid integer.",
    ),
    (DEFENSE.format("control=5"), "has control = 5; it should be a valid string."),
    (DEFENSE.format("rejects=1.5"), "has rejects = 1.5; it should be the share of clean images"),
    (DEFENSE.format("summary='\\ud800'"), "cannot be listed: UnicodeEncodeError: 'utf-8' codec"),
    (THREAT.format("{'examples': 'x'}"), "has examples = 'x'; it should be a valid integer."),
    (
        THREAT.format("{'protocol': LeaderboardProtocol(['pgd'])}"),
        "has protocol.required = ['pgd']; it should be a valid tuple.",
    ),
    (
        THREAT.format("{'budget': Budget('x')}"),
        "has budget.gradients = 'x'; it should be a valid integer.",
    ),
    (THREAT.format("{'access': 3}"), "has access = 3; it should be an instance of Access."),
    (THREAT.format("{'order': None}"), "has order = None; it should be a valid integer."),
    (THREAT.format("{'ball': 5}"), "has a ball that is 5 without 'name', which every"),
    (DATASET.format("{'shape': (1, 8)}"), "has shape = (1, 8); it has too few items."),
    (DATASET.format("{'classes': 10}"), "has classes = 10; it should be a valid tuple."),
    (DATASET.format("{'test_size': 'x'}"), "has test_size = 'x'; it should be a valid integer."),
    (attack("written_for = 'alp'"), "has written_for = 'alp'; it should be a valid tuple."),
    (attack("written_for = (1,)"), "has written_for.0 = 1; it should be a valid string."),
    (attack("norms = 5"), "has norms = 5; it should be a valid tuple."),
    (attack("norms = 'linf'"), "has norms = 'linf'; it should be a valid tuple."),
    (attack("stop_rule = 'x'"), "has stop_rule = 'x'; it should be an instance of StopRule."),
    (attack("minimises = 'yes'"), "has minimises = 'yes'; it should be a valid boolean."),
    (attack("summary = None"), "has summary = None; it should be a valid string."),
    (attack("restart_count = 3"), "has restart_count = 3; it should be callable."),
    (attack("done = True"), "has done = True; it should be callable."),
    (TOOL.format("summary = None"), "has summary = None; it should be a valid string."),
    (TOOL.format("cite = 5"), "has cite = 5; it should be a valid string."),
    (ABSENT.format("['x']"), "has name = ['x']; it should be a valid string."),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_a_field_of_a_wrong_type_refuses_its_plugin_and_no_other(
    tmp_path: Path, text: str, sentence: str
) -> None:
    found = planted_registry(tmp_path, {"odd": text, "good": ATTACK.format(name="good")})
    assert [card.name for card in found.cards()] == ["good"]
    (problem,) = found.problems
    assert problem.startswith("odd: ") and sentence in problem
    assert problem.endswith(".") and not found.missing_libraries


def test_an_attack_may_name_its_norms_in_a_list(tmp_path: Path) -> None:
    found = planted_registry(tmp_path, {"fine": attack("norms = ['linf']")})
    assert found.problems == []
    assert found.attack_card("odd").norms == ("linf",)


def test_a_value_is_not_converted_to_the_declared_type() -> None:
    for name, value in (("rejects", True), ("forwards", 1.0), ("datasets", ("digits", 5))):
        assert why_invalid("defense", Defense("odd", len, **{name: value})) != ""  # type: ignore[arg-type]


def test_a_valid_record_has_no_complaint() -> None:
    recipe = Recipe(lambda shape, classes: None, options={"a": 1})  # type: ignore[arg-type,return-value]
    record = Defense("fine", len, claims=(Claim("t", 1),), recipe=recipe)  # type: ignore[arg-type]
    assert why_invalid("defense", record) == ""


@pytest.mark.parametrize("share", [0.0, 1.0, 5, True, "0.05"])
def test_a_declared_rejection_share_must_lie_between_zero_and_one(share: Any) -> None:
    record = Defense("guarded", lambda loader: small_cnn(), rejects=share)
    assert "share of clean images" in why_invalid("defense", record)
    assert why_invalid("defense", replace(record, rejects=0.05)) == ""


@pytest.mark.row("E09")
def test_an_attack_names_the_defenses_that_it_was_written_for(tmp_path: Path) -> None:
    named = attack("written_for = ('alp', 'clp')")
    registry = planted_registry(tmp_path, {"one": named})
    assert registry.attack_card("odd").written_for == ("alp", "clp")
    assert registry.problems == []
    assert Registry.without_submissions().attack_card("pgd").written_for == ()

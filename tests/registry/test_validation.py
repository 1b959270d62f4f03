"""What a plugin offers, field by field: a wrong one leaves that plugin out, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.plugin import Claim, Defense, Recipe
from bench.registry.type_check import fits, mistyped
from tests.fixtures.planted_plugins import ATTACK, registry

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
    (DEFENSE.format("claims=None"), "has claims = None, not of type tuple[Claim, ...]."),
    (DEFENSE.format("claims=[Claim('t', 0.5)]"), "not of type tuple[Claim, ...]."),
    (DEFENSE.format("claims=(Claim('t', 'x'),)"), "has claims.robust = 'x', not of type float."),
    (DEFENSE.format("datasets=5"), "has datasets = 5, not of type tuple[str, ...]."),
    (DEFENSE.format("datasets='digits'"), "has datasets = 'digits', not of type tuple[str, ...]."),
    (DEFENSE.format("summary=None"), "has summary = None, not of type str."),
    (DEFENSE.format("forwards='x'"), "has forwards = 'x', not of type int."),
    (DEFENSE.format("forwards=True"), "has forwards = True, not of type int."),
    (
        DEFENSE.format("build=5").replace("lambda loader: 0, ", ""),
        "has build = 5, not of type Call",
    ),
    (DEFENSE.format("bpda=5"), "has bpda = 5, not of type Callable[[Loader], nn.Module] |"),
    (DEFENSE.format("randomness=5"), "has randomness = 5, not of type Randomness | None."),
    (DEFENSE.format("randomness=Randomness('x')"), "has randomness.draws = 'x', not of type int."),
    (DEFENSE.format("quick=1"), "has quick = 1, not of type bool."),
    (DEFENSE.format(RECIPE.format("epochs='x'")), "has recipe.epochs = 'x', not of type int."),
    (DEFENSE.format("detail=5"), "has detail = 5, not of type Mapping[str, Any]."),
    (DEFENSE.format("detail={'x': {1, 2}}"), "has detail = {'x': {1, 2}}, which JSON cannot carry"),
    (DEFENSE.format("detail={'x': 1e999}"), "has detail = {'x': inf}, which JSON cannot carry;"),
    (DEFENSE.format("summary='\\ud800'"), "cannot be listed: UnicodeEncodeError: 'utf-8' codec"),
    (THREAT.format("{'examples': 'x'}"), "has examples = 'x', not of type int."),
    (THREAT.format("{'required': ['pgd']}"), "has required = ['pgd'], not of type tuple[str, ...]"),
    (THREAT.format("{'budget': Budget('x')}"), "has budget.gradients = 'x', not of type int | N"),
    (THREAT.format("{'access': 3}"), "has access = 3, not of type Access."),
    (THREAT.format("{'order': None}"), "has order = None, not of type int."),
    (THREAT.format("{'ball': 5}"), "has a ball that is 5 without 'name', which every"),
    (DATASET.format("{'shape': (1, 8)}"), "has shape = (1, 8), not of type tuple[int, int, int]."),
    (DATASET.format("{'classes': 10}"), "has classes = 10, not of type tuple[str, ...]."),
    (DATASET.format("{'test_size': 'x'}"), "has test_size = 'x', not of type int."),
    (attack("norms = 5"), "has norms = 5, not of type tuple[str, ...]."),
    (attack("norms = 'linf'"), "has norms = 'linf', not of type tuple[str, ...]."),
    (attack("stop_rule = 'x'"), "has stop_rule = 'x', not of type StopRule."),
    (attack("minimises = 'yes'"), "has minimises = 'yes', not of type bool."),
    (attack("summary = None"), "has summary = None, not of type str."),
    (attack("runs = 3"), "has runs = 3, not a method."),
    (attack("done = True"), "has done = True, not a method."),
    (TOOL.format("summary = None"), "has summary = None, not of type str."),
    (TOOL.format("cite = 5"), "has cite = 5, not of type str."),
    (ABSENT.format("['x']"), "has name = ['x'], not of type str."),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_a_field_of_a_wrong_type_leaves_its_plugin_out_and_no_other(
    tmp_path: Path, text: str, sentence: str
) -> None:
    found = registry(tmp_path, {"odd": text, "good": ATTACK.format(name="good")})
    assert [card.name for card in found.cards()] == ["good"]
    (problem,) = found.problems
    assert problem.startswith("odd: what it offers as ") and sentence in problem
    assert problem.endswith(".") and not found.absent


def test_an_attack_may_name_its_norms_in_a_list(tmp_path: Path) -> None:
    found = registry(tmp_path, {"fine": attack("norms = ['linf']")})
    assert found.problems == []
    assert found.attack_card("odd").detail["norms"] == ["linf"]


def test_a_type_fits_what_it_says() -> None:
    assert fits(1, float) and fits(None, int | None) and fits((), tuple[str, ...])
    assert fits(len, Callable[..., int]) and not fits(5, Callable[..., int])
    assert not fits(True, float) and not fits((1, 2), tuple[int]) and not fits(1.0, int)


def test_a_record_in_order_has_no_complaint() -> None:
    recipe = Recipe(lambda shape, classes: None, options={"a": 1})  # type: ignore[arg-type,return-value]
    record = Defense("fine", len, claims=(Claim("t", 1),), recipe=recipe)  # type: ignore[arg-type]
    assert mistyped(record, Defense) == ""

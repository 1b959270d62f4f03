"""Declarations of a worker are validated field by field in the harness."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.core.errors import PluginError
from bench.sandbox.declarations import AttackDeclarations, DefenseDeclarations
from bench.sandbox.protocol import Frame

DECLARED: dict[str, Any] = {
    "cite": "", "summary": "A plain network.", "datasets": ["digits"], "surrogate": "linear",
    "quick": True, "forwards": 1, "rejects": None, "claims": [], "draws": None, "bpda": False,
    "recipe": False,
}  # fmt: skip

ATTACK: dict[str, Any] = {
    "cite": "", "summary": "An attack.", "needs": "GRADIENTS", "steps": 4,
    "stop_rule": "first success", "minimises": False, "norms": [], "coordinates": False,
    "goals": [], "written_for": [],
    "source": "", "eot_draws": 0, "examples": 0, "joint": False, "samples": False,
    "rows": 0, "external": False, "methods": ["done"], "parameters": {},
}  # fmt: skip


def parsed(**changes: Any) -> DefenseDeclarations:
    """The declarations that a worker sent, with changed fields."""
    header = {"declarations": json.loads(json.dumps(DECLARED | changes))}
    return DefenseDeclarations.parse("defense planted", Frame(1, header, bytearray()))


def test_valid_declarations_are_accepted() -> None:
    claim = {"threat": "digits-linf", "robust": 0.5, "cite": ""}
    found = parsed(claims=[claim], draws=4)
    assert found.claims[0].model_dump() == claim
    assert found.model_dump() == DECLARED | {"claims": [claim], "draws": 4}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cite", "x" * 201),
        ("summary", 3),
        ("datasets", "digits"),
        ("quick", 1),
        ("forwards", 0),
        ("rejects", "0.5"),
        ("draws", 1001),
        ("claims", [{"threat": "t", "robust": "much", "cite": ""}]),
        ("unknown", 1),
    ],
)
def test_the_first_invalid_field_is_named(field: str, value: object) -> None:
    with pytest.raises(PluginError, match=f"defense planted declares an invalid field: {field}"):
        parsed(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 10**6 + 1), ("steps", 2**63), ("steps", 0), ("steps", True), ("eot_draws", 1001),
     ("examples", 10**9 + 1)],
)  # fmt: skip
def test_numbers_of_an_attack_that_set_how_long_it_runs_are_bounded(
    field: str, value: object
) -> None:
    def declared(**changes: object) -> AttackDeclarations:
        header = {"declarations": ATTACK | changes}
        return AttackDeclarations.parse("attack planted", Frame(1, header, bytearray()))

    assert declared(steps=10**6).steps == 10**6
    with pytest.raises(PluginError, match=f"attack planted declares an invalid field: {field}"):
        declared(**{field: value})


@pytest.mark.parametrize("forwards", [10**6 + 1, 2**70, -1])
def test_the_passes_of_a_defense_are_bounded(forwards: int) -> None:
    assert parsed(forwards=10**6).forwards == 10**6
    with pytest.raises(PluginError, match="defense planted declares an invalid field: forwards"):
        parsed(forwards=forwards)


def test_a_reply_without_declarations_is_refused() -> None:
    with pytest.raises(PluginError, match="declares an invalid field: the whole"):
        DefenseDeclarations.parse("defense planted", Frame(1, {}, bytearray()))

"""A submitted threat model over a built-in set is the same as in this process; others wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import PluginError
from bench.core.protocols import LeaderboardProtocol
from bench.plugin import ThreatModel
from bench.registry.registry import Registry
from bench.sandbox.protocol import Frame
from bench.sandbox.set_codec import set_values
from bench.sandbox.threat_declarations import ThreatDeclarations, plain_values, unknown_names
from bench.threats.access import Access, Budget
from bench.threats.delta import LinfDelta
from bench.threats.norms import L2
from bench.threats.nuisance import print_and_scan
from bench.threats.patch import Patch
from bench.threats.threat_model import Goal, without_ranks
from tests.sandbox.isolated import sandboxed, unsandboxed, write_submission

THREAT = '''
"""A threat model with every field."""

from bench.plugin import (
    L2, Access, Budget, Fraction, Goal, LeaderboardProtocol, Linf, ThreatModel, hookimpl
)


class Ring(Linf):
    """The same numbers under code of its own."""


@hookimpl
def bench_threat_models():
    protocol = LeaderboardProtocol(
        required=("pgd", "transfer-standard"), follow_ups={"transfer": ("square",)},
        surrogates={"standard": "undefended"}, evidence=("digits-l2-half",),
    )
    yield ThreatModel(
        "{name}", "digits", {set}, access=Access.SCORES, goal=Goal("targeted", "next"),
        budget=Budget(queries=300), examples=128, protocol=protocol, order=120, summary="All.",
    )
'''
WHOLE = ThreatModel(
    "whole", "digits", L2(Fraction(3, 7)), access=Access.LABELS, goal=Goal("nearest"),
    budget=Budget(2, 3), examples=9, order=101, summary="Text.",
    protocol=LeaderboardProtocol(("pgd",), {"transfer": ("square",)}, {"a": "linear"}, ("b",)),
)  # fmt: skip


L2_SET = set_values(WHOLE.ball)
PATCH = set_values(Patch(3, 3))


def parsed(**changed: Any) -> ThreatModel:
    """What the harness builds from plain values, some of which are changed."""
    frame = Frame(1, {"declarations": plain_values(WHOLE) | changed}, bytearray())
    return ThreatDeclarations.parse("submission whole", frame).threat_model(
        "submission whole", "whole"
    )


def test_every_field_arrives() -> None:
    assert parsed() == WHOLE
    assert parsed().id == WHOLE.id and parsed().protocol.id == WHOLE.protocol.id


def test_one_point_for_all_images_arrives() -> None:
    shared = replace(WHOLE, ball=LinfDelta(eps=Fraction(1, 5)), scope="shared")
    found = parsed(**plain_values(shared))
    assert found == shared and found.id == shared.id


def test_a_nuisance_arrives_and_another_field_is_refused() -> None:
    physical = replace(WHOLE, nuisance=print_and_scan())
    values = plain_values(physical)
    assert parsed(**values) == physical and parsed(**values).id == physical.id
    for wrong in ({"degrees": 5.0}, values["nuisance"] | {"degrees": -5.0}):
        with pytest.raises(PluginError, match="a nuisance"):
            parsed(nuisance=wrong)


@pytest.mark.parametrize(
    "changed",
    [{"set": {"name": "L2"}}, {"set": L2_SET | {"eps": "1/0"}}, {"set": L2_SET | {"eps": "x"}},
     {"set": L2_SET | {"name": "Ring"}}, {"set": L2_SET | {"eps": "9" * 5000}},
     {"set": ["L2", "1"]}, {"set": L2_SET | {"eps": 1}}, {"set": L2_SET | {"more": 1}},
     {"set": PATCH | {"height": 10**9}},
     {"set": PATCH | {"top": -1}}, {"set": PATCH | {"top": 0.5}}, {"set": PATCH | {"left": True}},
     {"set": {"eps": "1"}}, {"scope": "all"}, {"scope": "shared"},
     {"goal": ["targeted", "mine"]}, {"goal": ["none", ""]},
     {"access": "EVERYTHING"}, {"queries": -1}, {"queries": True}, {"queries": 10**12},
     {"examples": 0}, {"examples": "5"}, {"order": 1}, {"required": "pgd"}, {"ranked": 1},
     {"required": [7]}, {"follow_ups": {"transfer": "square"}}, {"surrogates": ["linear"]},
     {"more": 1}, {"summary": "x" * 5000}],
)  # fmt: skip
def test_invalid_values_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match="submission whole declares"):
        parsed(**changed)


@pytest.mark.parametrize(
    ("change", "name"),
    [(lambda p: replace(p, required=("no-attack",)), "no-attack"),
     (lambda p: replace(p, follow_ups={"transfer": ("no-attack",)}), "no-attack"),
     (lambda p: replace(p, surrogates={"standard": "no-defense"}), "no-defense"),
     (lambda p: replace(p, evidence=("no-threat",)), "no-threat")],
)  # fmt: skip
def test_a_protocol_names_what_is_registered(
    change: Callable[[LeaderboardProtocol], LeaderboardProtocol], name: str
) -> None:
    registry = Registry.without_submissions()
    known = registry.threats["digits-l2"].value
    assert unknown_names(registry, known) == ""
    wrong = unknown_names(registry, replace(known, protocol=change(known.protocol)))
    assert "its protocol cannot be followed" in wrong and name in wrong
    assert "no dataset named" in unknown_names(registry, replace(known, dataset="mine"))


@pytest.mark.usefixtures("sandbox")
def test_it_is_the_same_as_in_this_process(tmp_path: Path) -> None:
    source = THREAT.replace("{set}", "Linf(Fraction(13, 255))")
    write_submission(tmp_path, source, kind="threat")
    inside, here = sandboxed(tmp_path), unsandboxed(tmp_path)
    assert inside.threats["mine"].value == here.threats["mine"].value
    assert inside.threats["mine"].isolation == "sandboxed"
    assert inside.reasons_not_imported == {}


@pytest.mark.usefixtures("sandbox")
def test_a_set_of_its_own_waits_and_has_no_ranks(tmp_path: Path) -> None:
    source = THREAT.replace("{set}", "Ring(Fraction(13, 255))")
    write_submission(tmp_path, source, kind="threat")
    inside, here = sandboxed(tmp_path), unsandboxed(tmp_path)
    assert "mine" not in inside.threats
    why = inside.why_not_imported("mine")
    assert "its perturbation set Ring is code of its own" in why
    assert "--allow-unsandboxed" in why and "without ranks" in why
    value = here.threats["mine"].value
    assert not value.protocol.ranked
    ranked = replace(value, protocol=replace(value.protocol, ranked=True))
    assert ranked.id == value.id and without_ranks(ranked) == value
    assert without_ranks(WHOLE) is WHOLE


@pytest.mark.usefixtures("sandbox")
def test_a_protocol_that_cannot_be_followed_waits(tmp_path: Path) -> None:
    source = THREAT.replace("{set}", "L2(Fraction(1))").replace('"pgd"', '"unknown"')
    write_submission(tmp_path, source, kind="threat")
    inside = sandboxed(tmp_path)
    assert "mine" not in inside.threats
    assert "no attack named 'unknown'" in inside.why_not_imported("mine")

"""Names of corruptions and of the attacks that apply them."""

from __future__ import annotations

from bench.core.corruptions import (
    CORRUPTION_ATTACKS,
    CORRUPTIONS,
    SEVERITIES,
    corruption_attack,
    corruption_of,
)
from bench.registry.registry import Registry


def test_every_attack_is_named_once_and_read_back() -> None:
    assert len(set(CORRUPTION_ATTACKS)) == len(CORRUPTIONS) * SEVERITIES
    read = [corruption_of(name) for name in CORRUPTION_ATTACKS]
    assert read == [(kind, s) for kind in CORRUPTIONS for s in range(1, SEVERITIES + 1)]
    assert corruption_of("rotation-grid") is None


def test_the_registry_knows_every_attack_under_exactly_this_name() -> None:
    registry = Registry.without_submissions()
    for name in CORRUPTION_ATTACKS:
        assert registry.find("attack", name).value.name == name
    assert corruption_attack("fog", SEVERITIES) == "fog"

"""Leaderboard protocols: their id, their attacks, and that they can be keys."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.core.protocols import LeaderboardProtocol

RULES = LeaderboardProtocol(("pgd", "square"), {"zero-gradients": ("square-long", "pgd")})


@pytest.mark.parametrize(
    "changed",
    [
        replace(RULES, required=("pgd",)),
        replace(RULES, required=("square", "pgd")),
        replace(RULES, follow_ups={"zero-gradients": ("square-long",)}),
        replace(RULES, follow_ups={"not-converged": ("square-long", "pgd")}),
        replace(RULES, surrogates={"standard": "undefended"}),
        replace(RULES, evidence=("digits-box",)),
        replace(RULES, ranked=False),
    ],
)
def test_each_field_changes_the_id(changed: LeaderboardProtocol) -> None:
    assert changed.id != RULES.id


def test_equal_protocols_have_the_same_id_and_hash() -> None:
    again = LeaderboardProtocol(("pgd", "square"), {"zero-gradients": ("square-long", "pgd")})
    assert (again.id, hash(again)) == (RULES.id, hash(RULES)) and again == RULES


def test_attacks_are_the_required_ones_and_every_follow_up_once() -> None:
    assert RULES.attacks == ("pgd", "square", "square-long")

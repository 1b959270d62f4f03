"""Planted defenses under AutoAttack: the comparison, and counts of the peer."""

from __future__ import annotations

import pytest

from tests.benchmarks.peer_attacks import autoattack
from tests.benchmarks.planted_defenses import (
    CHOSEN,
    HONEST,
    PlantedRow,
    comparable,
    peer_robust,
    table,
)
from tests.planted.cases import PREFIX
from tests.planted.playing import installed, load_registry

BY_NAME = {case.name.removeprefix(PREFIX): case for case in comparable()}


def row(ranked: int | None, peer: int | None, verdict: str = "sound") -> PlantedRow:
    return PlantedRow("d", "a fault", 32, 10, ranked, verdict, (), peer)


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (row(12, 12), True),
        (row(13, 12), False),
        (row(13, 12, "suspect"), True),
        (row(13, 12, "invalid"), True),
        (row(None, 12), True),
        (row(12, None), False),
    ],
    ids=["equal", "above", "suspect", "invalid", "no figure", "AutoAttack ends with an exception"],
)
def test_a_row_misleads_where_it_is_sound_and_above_autoattack(
    found: PlantedRow, *, holds: bool
) -> None:
    assert found.holds is holds
    assert ("misleads" in table([found])) is not holds


@pytest.mark.parametrize(
    ("ranked", "verdict", "holds"),
    [(200, "sound", True), (202, "sound", True), (203, "sound", False), (150, "sound", True),
     (200, "suspect", False), (200, "invalid", False), (None, "sound", False)],
)  # fmt: skip
def test_an_honest_row_is_sound_and_at_most_two_in_500_above(
    ranked: int | None, verdict: str, *, holds: bool
) -> None:
    found = PlantedRow("d", "", 500, 190, ranked, verdict, (), 200)
    assert found.holds is holds
    assert ("above AutoAttack or accused" in table([found])) is not holds
    assert "| honest |" in table([found])


def test_the_chosen_defenses_can_be_compared() -> None:
    assert {*CHOSEN, *HONEST} <= set(BY_NAME)
    assert {name for name, case in BY_NAME.items() if not case.group} == set(HONEST)
    assert len(BY_NAME) >= 40
    assert "rejects-all" not in BY_NAME, "AutoAttack reads no rejection score"


def test_autoattack_breaks_what_only_its_gradients_decide() -> None:
    """Of a plain network behind a detached graph APGD breaks nothing; behind a scale it does."""
    pytest.importorskip("pyautoattack", reason="the peer is an extra")
    with installed():
        registry = load_registry()
        found = {
            name: peer_robust(BY_NAME[name], registry, 24, autoattack("apgd-ce"))
            for name in ("constant-gradient", "flat")
        }
    assert found["constant-gradient"] is not None and found["flat"] is not None
    assert found["flat"] < 12 < found["constant-gradient"]


def test_an_exception_of_autoattack_is_no_count() -> None:
    pytest.importorskip("pyautoattack", reason="the peer is an extra")
    with installed():
        registry = load_registry()
        assert peer_robust(BY_NAME["no-graph"], registry, 8, autoattack("apgd-ce")) is None

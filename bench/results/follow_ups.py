"""Follow-up attacks: which ones the warnings of a row call for, and whether they answer them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bench.core.cells import CellState
from bench.results.check_table import ANSWERS, MASKING_CHECKS
from bench.results.example_results import DefenseResult, LeaderboardResults
from bench.results.masking_checks import WARNING, MaskingCheck

SETTLED = 0.01
"""Share of the examples that the last follow-up attack may break where a warning is answered."""


@dataclass(frozen=True)
class FollowUp:
    """The follow-up attacks of one warning."""

    check: str
    attacks: tuple[str, ...]
    """Those that apply to the defense, in the order in which they run."""
    done: int
    last_took: int | None
    """Examples that the last one broke and neither a required nor an earlier one did; None while it
    is not done."""
    answered: bool
    sentence: str


def called_attacks(results: LeaderboardResults, checks: Iterable[MaskingCheck]) -> tuple[str, ...]:
    """The follow-up attacks that the warnings among the checks of a row call for, each once."""
    found = [n for c in checks if c.state == WARNING for n in _protocol_attacks(results, c.name)]
    return tuple(dict.fromkeys(found))


def _protocol_attacks(results: LeaderboardResults, check: str) -> tuple[str, ...]:
    """The attacks that the protocol names for a check; a check of a plugin calls for all."""
    named = results.leaderboard.protocol.follow_ups
    meaning = MASKING_CHECKS.get(check)
    suits = ANSWERS if meaning is None else meaning.answered_by
    kinds = [kind for kind in ANSWERS if kind in suits and kind in named]
    return tuple(dict.fromkeys(name for kind in kinds for name in named[kind]))


def follow_ups(
    results: LeaderboardResults, result: DefenseResult, checks: Iterable[MaskingCheck]
) -> tuple[FollowUp, ...]:
    """The follow-up attacks of each warning of a row, with what they have broken."""
    raised = [check.name for check in checks if check.state == WARNING]
    return tuple(_follow_up(results, result, name) for name in raised)


def _follow_up(results: LeaderboardResults, result: DefenseResult, check: str) -> FollowUp:
    attacks = tuple(
        name
        for name in _protocol_attacks(results, check)
        if not is_not_applicable(results, result.defense, name)
    )
    done = sum(name in result.attacks for name in attacks)
    last = _last_took(results, result, attacks) if attacks and done == len(attacks) else None
    allowed = math.floor(SETTLED * len(result.clean))
    answered = last is not None and last <= allowed
    return FollowUp(check, attacks, done, last, answered, _sentence(attacks, done, last, allowed))


def _last_took(results: LeaderboardResults, result: DefenseResult, attacks: tuple[str, ...]) -> int:
    before = (*results.leaderboard.required, *attacks[:-1])
    return int((result.broken_by(attacks[-1:]) & ~result.broken_by(before)).sum())


def is_not_applicable(results: LeaderboardResults, defense: str, attack: str) -> bool:
    """Whether an attack was planned against a defense and found not to apply."""
    states = {row.state for row in results.cells.get((defense, attack), ())}
    return states == {CellState.NOT_APPLICABLE}


def _sentence(attacks: tuple[str, ...], done: int, last: int | None, allowed: int) -> str:
    if not attacks:
        return "The protocol has no follow-up attack that applies."
    if last is None:
        return f"{done} of {len(attacks)} follow-up attacks are done: {', '.join(attacks)}."
    return (
        f"After {', '.join(attacks)}, of which the last broke {last} more; up to {allowed} answer"
        " the warning."
    )

"""Whether an attack breaks more examples within a larger radius, as it must.

A perturbation within a radius is also one within a larger radius. Where an attack loses examples,
or gains none, by a larger radius, it is misled (arXiv:1802.00420, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from bench.core.cards import AttackCard
from bench.results.example_results import AttackResult, DefenseResult, LeaderboardResults
from bench.results.masking_checks import (
    NOT_TESTED,
    PASSED,
    WARNING,
    MaskingCheck,
    same_defense,
)
from bench.results.paired_attacks import (
    LEAST_PAIRS,
    LEAST_POINTS,
    P_LIMIT,
    PairedCounts,
    count_pairs,
    tail_of_share,
)

FLAT_RATIO = 4
"""From this ratio of the largest to the smallest radius on, success must grow."""

FLAT_SHARE = 0.1
"""Least share of the examples unbroken within the smallest radius that the largest one breaks."""

NAME = "larger-bound-does-not-help"


class AtRadius(NamedTuple):
    """One attack within one radius."""

    eps: str
    radius: float
    attack: AttackResult


def larger_bound_does_not_help(
    results: LeaderboardResults, result: DefenseResult, radii: Iterable[LeaderboardResults]
) -> MaskingCheck:
    """Warns where the success of an attack falls with the radius, or hardly rises.

    Args:
        results: the leaderboard's results.
        result: the defense's result there.
        radii: results of the leaderboards that differ in the radius alone.
    """
    if results.leaderboard.mode != "full":
        return MaskingCheck(NAME, NOT_TESTED, "A cascade runs each attack on other examples.")
    raised: list[str] = []
    passed: list[str] = []
    few = 0
    for attack, found in _by_attack(results, result, radii).items():
        pairs = [_fall(result, near, far) for near, far in combinations(found, 2)]
        if not all(counts.is_testable for counts in pairs):
            few += 1
            continue
        worst = min(pairs, key=lambda counts: (counts.p, -counts.difference))
        sentence = _sentence(attack, result, found, worst)
        falls = any(counts.is_significant for counts in pairs)
        (raised if falls or _is_flat(result, found) else passed).append(sentence)
    if raised or passed:
        return MaskingCheck(NAME, WARNING if raised else PASSED, " ".join(raised or passed[:1]))
    reason = (
        f"Fewer than {LEAST_PAIRS} examples that are right on the clean image were evaluated"
        " within both radii."
        if few
        else "No attack is done here and within another radius."
    )
    return MaskingCheck(NAME, NOT_TESTED, reason)


def _by_attack(
    results: LeaderboardResults, result: DefenseResult, radii: Iterable[LeaderboardResults]
) -> dict[str, list[AtRadius]]:
    """The results of each attack that is done within two radii or more, the smallest first.

    Attacks that look for the smallest perturbation do not depend on the radius.
    """
    everywhere: list[tuple[LeaderboardResults, DefenseResult]] = [(results, result)]
    for other in radii:
        same = same_defense(other, result)
        if same is not None:
            everywhere.append((other, same))
    everywhere.sort(key=lambda pair: pair[0].leaderboard.radius)
    found = {
        name: [
            AtRadius(str(one.leaderboard.set["eps"]), one.leaderboard.radius, same.attacks[name])
            for one, same in everywhere
            if name in same.attacks and same.attacks[name].version == result.attacks[name].version
        ]
        for name in sorted(result.attacks)
        if _depends_on_radius(result.attacks[name].card)
    }
    return {name: runs for name, runs in found.items() if len(runs) > 1}


def _depends_on_radius(attack: AttackCard) -> bool:
    return not attack.minimises


def _fall(result: DefenseResult, near: AtRadius, far: AtRadius) -> PairedCounts:
    """What the attack breaks within the smaller radius, paired with the larger one."""
    paired = near.attack.evaluated & far.attack.evaluated
    return count_pairs(result.clean, paired, near.attack.broken, far.attack.broken)


def _is_flat(result: DefenseResult, found: Sequence[AtRadius]) -> bool:
    """Whether the largest radius breaks hardly any example that the smallest one leaves."""
    near, far = found[0], found[-1]
    if near.radius <= 0 or far.radius < FLAT_RATIO * near.radius * (1 - 1e-9):
        return False
    paired = near.attack.evaluated & far.attack.evaluated
    left = result.clean & paired & ~near.attack.broken
    still = int((left & ~far.attack.broken).sum())
    at_risk = int(left.sum())
    # P(at most at_risk - still of at_risk break) for a share of FLAT_SHARE.
    p = tail_of_share(still, at_risk, 1 - FLAT_SHARE)
    return still >= LEAST_POINTS * paired.sum() and p < P_LIMIT


def _sentence(
    attack: str, result: DefenseResult, found: Sequence[AtRadius], worst: PairedCounts
) -> str:
    counts = ", ".join(str(int((run.attack.broken & result.clean).sum())) for run in found)
    radii = ", ".join(run.eps for run in found)
    return (
        f"{attack} breaks {counts} of {worst.n} examples within the radii {radii}; of two of these"
        f" radii, {worst.numbers}, or, from the smallest to a {FLAT_RATIO} times larger radius,"
        f" significantly less than {FLAT_SHARE:.0%} of the unbroken examples gained."
    )

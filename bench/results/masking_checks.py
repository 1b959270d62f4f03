"""Gradient-masking checks: signs of an overestimated robust accuracy, each with its numbers.

The first four are the signs of obfuscated gradients of arXiv:1802.00420 (section 3.1), computed per
example from the stored outcomes. Examples that are wrong on the clean image count for no attack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.core.cards import AttackCard, CertifierCard
from bench.core.statistics import clopper_pearson
from bench.results.example_results import Bits, DefenseResult, Floats, LeaderboardResults, steps_of
from bench.store import CertificateRow

WARNING, PASSED, NOT_TESTED = "raised", "clear", "not tested"

TOLERANCE = 0.01
"""Share of the examples that one good attack may break and another miss."""

SAMPLING_TOLERANCE = 0.002
"""The same where one of the two attacks only samples points."""

NAMED_EXAMPLES = 10
"""Number of examples that a sentence lists by index."""

LATE_STEPS = 0.9
"""Share of a restart's steps after which a first success is late."""

LATE_SHARE = 0.05
"""Share of late first successes above which the attack has too few steps."""

_REQUIRES = "Requires {} attack, both done on all examples."


@dataclass(frozen=True)
class MaskingCheck:
    """The result of one check."""

    name: str
    state: str
    """`raised` (a warning), `clear` (passed) or `not tested`."""
    evidence: str
    """One sentence with the numbers."""


def uses_gradients(attack: AttackCard) -> bool:
    """Whether it follows the gradient of the defense itself."""
    return attack.needs == "gradients" and not attack.source


def samples_blindly(attack: AttackCard) -> bool:
    """Whether it draws points without following an answer or a gradient of the defense."""
    return attack.samples and not uses_gradients(attack)


def one_step_beats_iterative(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where the best one-step attack breaks more than the best iterative one.

    The difference must exceed 2 standard errors of the paired counts.
    """
    name = "one-step-beats-iterative"
    gradient = _done(results, result, gradient=True)
    iterative = [attack for attack in gradient if steps_of(results.attack_cards[attack]) != 1]
    one = result.strongest_attack(set(gradient) - set(iterative))
    many = result.strongest_attack(iterative)
    if one is None or many is None or results.leaderboard.mode == "rank":
        return MaskingCheck(
            name, NOT_TESTED, _REQUIRES.format("a one-step and an iterative gradient")
        )
    by_one, by_many = result.broken_by([one]), result.broken_by([many])
    only_one, only_many = int((by_one & ~by_many).sum()), int((by_many & ~by_one).sum())
    error = paired_error(only_one, only_many, len(by_one))
    alone = int((by_one & ~result.broken_by(iterative)).sum())
    return MaskingCheck(
        name,
        WARNING if only_one - only_many > 2 * error else PASSED,
        f"{one} breaks {by_one.sum()} of {len(by_one)} and {many} {by_many.sum()}: a difference of"
        f" {only_one - only_many:+d} with a standard error of {error:.1f}; {alone} are broken by"
        f" {one} and by no iterative attack.",
    )


def paired_error(only_a: int, only_b: int, n: int) -> float:
    """Standard error of only_a - only_b, two counts among n paired examples."""
    return math.sqrt(only_a + only_b - (only_a - only_b) ** 2 / n) if n else 0.0


def black_box_beats_white_box(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where attacks without the true gradient break what no gradient attack breaks."""
    others = _done(results, result, gradient=False)
    return _missed("black-box-beats-white-box", results, result, others, TOLERANCE)


def random_beats_gradient(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where sampling points breaks what no gradient attack breaks."""
    cards = results.attack_cards
    others = [a for a in _done(results, result, gradient=False) if samples_blindly(cards[a])]
    return _missed("random-beats-gradient", results, result, others, SAMPLING_TOLERANCE)


def _done(results: LeaderboardResults, result: DefenseResult, *, gradient: bool) -> list[str]:
    """Attacks with a figure for this defense: those that use its gradient, or the others."""
    return [
        name for name in result.attacks if uses_gradients(results.attack_cards[name]) == gradient
    ]


def _missed(
    name: str, results: LeaderboardResults, result: DefenseResult, others: list[str], share: float
) -> MaskingCheck:
    gradient = _done(results, result, gradient=True)
    if not others or not gradient or results.leaderboard.mode == "rank":
        return MaskingCheck(name, NOT_TESTED, _REQUIRES.format("such an attack and a gradient"))
    only = result.broken_by(others) & ~result.broken_by(gradient)
    allowed = tolerated_count(share, len(only))
    return MaskingCheck(
        name,
        WARNING if only.sum() > allowed else PASSED,
        f"{only.sum()} of {len(only)} are broken by {', '.join(others)} and by no gradient attack"
        f" ({', '.join(gradient)}); up to {allowed} may be chance.",
    )


def tolerated_count(tolerance: float, n: int) -> int:
    """The number of examples that a tolerance allows, at least 1."""
    return max(1, math.floor(tolerance * n))


def unbounded_falls_short(result: DefenseResult, box: Mapping[str, DefenseResult]) -> MaskingCheck:
    """Warns where examples are unbroken although every image of the pixel box is allowed."""
    name = "unbounded-falls-short"
    free = box.get(result.defense)
    if free is None or not free.has_clean_pass or not free.attacks:
        return MaskingCheck(
            name, NOT_TESTED, "No attack without a bound is done on these examples."
        )
    left = int(free.robust().sum())
    return MaskingCheck(
        name,
        WARNING if left else PASSED,
        f"With the whole pixel box allowed, {left} of {len(free.clean)} are unbroken by"
        f" {', '.join(sorted(free.attacks))}.",
    )


def larger_bound_does_not_help(
    results: LeaderboardResults, result: DefenseResult, smaller: Iterable[LeaderboardResults]
) -> MaskingCheck:
    """Warns where examples are unbroken that an attack broke within a smaller radius."""
    name = "larger-bound-does-not-help"
    found = []
    for other in smaller:
        nearer = other.defenses.get(result.defense)
        common = [] if nearer is None else sorted(set(nearer.attacks) & set(result.attacks))
        if nearer is not None and common and nearer.examples == result.examples:
            lost = int((nearer.broken_by(common) & result.robust()).sum())
            found.append((lost, other.leaderboard.set["eps"]))
    if not found:
        return MaskingCheck(
            name, NOT_TESTED, "No attack is done both here and within a smaller radius."
        )
    lost, eps = max(found)
    n = len(result.clean)
    return MaskingCheck(
        name,
        WARNING if lost > tolerated_count(TOLERANCE, n) else PASSED,
        f"{lost} of {n} are broken within {eps} and unbroken within"
        f" {results.leaderboard.set['eps']}, which contains it; up to"
        f" {tolerated_count(TOLERANCE, n)} may be chance.",
    )


def _shares_of_steps(results: LeaderboardResults, result: DefenseResult) -> list[Floats]:
    """[n] for each iterative gradient attack: the share of its steps at the first success."""
    lengths = {a: steps_of(results.attack_cards[a]) for a in _done(results, result, gradient=True)}
    return [result.attacks[a].step / steps for a, steps in lengths.items() if steps > 1]


def not_converged(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where many examples break only in the last tenth of every restart that breaks them."""
    runs = _shares_of_steps(results, result)
    # In a cascade no other attack runs on the example that one attack broke late.
    if not runs or results.leaderboard.mode == "rank":
        reason = "No iterative gradient attack is done on all examples."
        return MaskingCheck("not-converged", NOT_TESTED, reason)
    earliest = np.minimum.reduce(runs)[result.clean]
    first = earliest[np.isfinite(earliest)]
    won, late = len(first), int((first > LATE_STEPS).sum())
    allowed = max(tolerated_count(TOLERANCE, len(result.clean)), LATE_SHARE * won)
    return MaskingCheck(
        "not-converged",
        WARNING if late > allowed else PASSED,
        f"{late} of {won} first successes came in the last tenth of the steps; more steps would"
        f" find more if that were above {LATE_SHARE:.0%}.",
    )


def soundness_error(
    result: DefenseResult,
    smaller: Iterable[LeaderboardResults],
    certificates: Iterable[CertificateRow],
    certifiers: Mapping[str, CertifierCard],
) -> MaskingCheck:
    """Warns where a certified example is broken, here or within a smaller radius.

    One example refutes a deterministic certifier; a statistical one is refuted where the broken
    share is significantly above its stated error.
    """
    name = "soundness-error"
    current = current_certificates(result, certificates, certifiers)
    if not current or not result.has_clean_pass:
        return MaskingCheck(
            name, NOT_TESTED, "No certificate was made for this defense under this threat model."
        )
    broken = ~result.robust() | _broken_nearer(result, smaller)
    judged = [
        _refuted(certificate, broken, certifiers[certificate.certifier]) for certificate in current
    ]
    raised = [sentence for refuted, sentence in judged if refuted]
    sentences = raised or [sentence for _, sentence in judged]
    return MaskingCheck(name, WARNING if raised else PASSED, " ".join(sentences))


def _broken_nearer(result: DefenseResult, smaller: Iterable[LeaderboardResults]) -> Bits:
    """[n]: broken within a smaller radius."""
    found = np.zeros_like(result.clean)
    for other in smaller:
        nearer = other.defenses.get(result.defense)
        if nearer is None or (nearer.digest, nearer.examples) != (result.digest, result.examples):
            continue
        if nearer.has_clean_pass:
            found |= ~nearer.robust()
    return found


def _refuted(
    certificate: CertificateRow, broken: Bits, certifier: CertifierCard
) -> tuple[bool, str]:
    """Whether a certifier is refuted, and the sentence with its numbers."""
    wrong = np.flatnonzero(certificate.certified & broken)
    certified, error = int(certificate.certified.sum()), stated_error(certificate, certifier)
    refuted = clopper_pearson(len(wrong), certified).low > error
    numbers = ", ".join(map(str, wrong[:NAMED_EXAMPLES])) + (
        " and more" if len(wrong) > NAMED_EXAMPLES else ""
    )
    return refuted, (
        f"Of {certified} examples certified by {certificate.certifier}, {len(wrong)} are broken by"
        f" a verified adversarial example{f' (number {numbers})' if len(wrong) else ''}"
        f"{f'; its stated error is {error:.1%}' if error else ''}."
    )


def current_certificates(
    result: DefenseResult, rows: Iterable[CertificateRow], certifiers: Mapping[str, CertifierCard]
) -> list[CertificateRow]:
    """The certificates of the defense's current digest by current certifiers."""
    now = {(result.digest, card.name, card.digest) for card in certifiers.values()}
    return [p for p in rows if (p.defense_digest, p.certifier, p.certifier_digest) in now]


def stated_error(certificate: CertificateRow, certifier: CertifierCard) -> float:
    """The stated probability that a certificate is wrong; 0 where the certifier is exact."""
    return 0.0 if certificate.exact else certifier.error

"""Gradient-masking checks: signs of an overestimated robust accuracy, each with its numbers.

The first four are the signs of obfuscated gradients of arXiv:1802.00420 (section 3.1), computed per
example from the stored outcomes. Examples that are wrong on the clean image count for no attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from bench.core.cards import AttackCard, CertifierCard
from bench.core.statistics import clopper_pearson
from bench.results.example_results import Bits, DefenseResult, Floats, LeaderboardResults, steps_of
from bench.results.paired_attacks import (
    LEAST_PAIRS,
    P_LIMIT,
    evaluated_by,
    paired_counts,
    tail_of_share,
)
from bench.store import CertificateRow

WARNING, PASSED, NOT_TESTED = "raised", "clear", "not tested"

NAMED_EXAMPLES = 10
"""Number of examples that a sentence lists by index."""

LATE_STEPS = 0.9
"""Share of a restart's steps after which a first success is late."""

LATE_SHARE = 0.05
"""Share of late first successes above which the attack has too few steps."""

HALF = 0.5
"""Share of a restart's steps after which a first success belongs to the last doubling."""

LEAST_GAIN = 0.01
"""Share of the examples that the last doubling of the steps may gain."""

LOST_VOTES = 0.02
"""Share of examples of a random defense whose broken images may lose the referee's vote by chance.

An image that is misclassified on 70 % of the draws is confirmed on 9 of 10 draws with a chance of
15 %, and then loses the vote over 20 draws with one of 11 %.
"""

_REQUIRES = "Requires {} attack, both done on the same examples."
_TOO_FEW = (
    "Only {} of {} examples evaluated by both are right on the clean image; at least {} are needed."
)


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


def is_black_box(attack: AttackCard) -> bool:
    """Whether it is a transfer, score-based or decision-based attack; blind sampling is none."""
    return not uses_gradients(attack) and not samples_blindly(attack)


def one_step_beats_iterative(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where the best one-step attack breaks significantly more than the best iterative one.

    Both use the gradient of the defense.
    """
    gradient = _done(result, uses_gradients)
    iterative = [attack for attack in gradient if steps_of(result.attacks[attack].card) != 1]
    one = result.strongest_attack(set(gradient) - set(iterative))
    many = result.strongest_attack(iterative)
    return _compared(
        MaskingCheck(
            "one-step-beats-iterative",
            NOT_TESTED,
            _REQUIRES.format("a one-step and an iterative gradient"),
        ),
        results,
        result,
        [] if one is None else [one],
        [] if many is None else [many],
    )


def black_box_beats_white_box(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where transfer, score and decision attacks break significantly more than gradients."""
    others = _done(result, is_black_box)
    blind = _done(result, samples_blindly)
    kind = "a transfer, score or decision attack and a gradient"
    reason = _REQUIRES.format(kind)
    if blind and not others:
        reason = f"{reason} Of the attacks without gradients only blind sampling is done"
        reason = f"{reason} ({', '.join(blind)})."
    return _compared(
        MaskingCheck("black-box-beats-white-box", NOT_TESTED, reason),
        results,
        result,
        others,
        _done(result, uses_gradients),
    )


def random_beats_gradient(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where sampling points breaks significantly more than following gradients."""
    return _compared(
        MaskingCheck(
            "random-beats-gradient", NOT_TESTED, _REQUIRES.format("a sampling and a gradient")
        ),
        results,
        result,
        _done(result, samples_blindly),
        _done(result, uses_gradients),
    )


def _done(result: DefenseResult, kind: Callable[[AttackCard], bool]) -> list[str]:
    """Attacks of a kind with a figure for this defense."""
    return [name for name in sorted(result.attacks) if kind(result.attacks[name].card)]


def _compared(
    untested: MaskingCheck,
    results: LeaderboardResults,
    result: DefenseResult,
    first: list[str],
    second: list[str],
) -> MaskingCheck:
    """Warns where the first attacks together break significantly more than the second ones."""
    # In a cascade no other attack runs on the examples that one attack broke.
    if not first or not second or results.leaderboard.mode != "full":
        return untested
    counts = paired_counts(result, first, second)
    if not counts.is_testable:
        return replace(untested, evidence=_TOO_FEW.format(counts.right, counts.n, LEAST_PAIRS))
    return MaskingCheck(
        untested.name,
        WARNING if counts.is_significant else PASSED,
        f"Of {counts.n} examples that both evaluated, {', '.join(first)} break {counts.first} and"
        f" {', '.join(second)} {counts.second}; {counts.numbers}.",
    )


def unbounded_falls_short(result: DefenseResult, box: Mapping[str, DefenseResult]) -> MaskingCheck:
    """Warns where examples are unbroken although every image of the pixel box is allowed."""
    name = "unbounded-falls-short"
    free = box.get(result.defense)
    same = free is not None and free.digest == result.digest
    if free is None or not same or not free.has_clean_pass or not free.attacks:
        return MaskingCheck(
            name, NOT_TESTED, "No attack without a bound is done on these examples."
        )
    attacks = ", ".join(sorted(free.attacks))
    evaluated = free.clean & evaluated_by(free, free.attacks)
    unbroken, n = evaluated & free.robust(), int(evaluated.sum())
    claimed = np.any([a.unconfirmed for a in free.attacks.values()], axis=0)
    left, lost = int(unbroken.sum()), int((unbroken & claimed).sum())
    if not n:
        return MaskingCheck(
            name, NOT_TESTED, f"{attacks} evaluated no example that is right on the clean image."
        )
    too_many = lost > 0 and tail_of_share(lost, n, LOST_VOTES) < P_LIMIT
    evidence = (
        f"With the whole pixel box allowed, {left} of {n} right examples are unbroken by {attacks}"
    )
    if lost:
        evidence += (
            f", {lost} of them because the referee's vote over new draws went against the attack's"
            f" claim; a warning needs one without a claim, or more than {LOST_VOTES:.0%} with"
            f" p < {P_LIMIT:g}"
        )
    state = WARNING if left > lost or too_many else PASSED
    return MaskingCheck(name, state, f"{evidence}.")


def _shares_of_steps(result: DefenseResult) -> list[Floats]:
    """[n] for each iterative gradient attack: the share of its steps at the first success."""
    lengths = {a: steps_of(result.attacks[a].card) for a in _done(result, uses_gradients)}
    return [result.attacks[a].step / steps for a, steps in lengths.items() if steps > 1]


def not_converged(results: LeaderboardResults, result: DefenseResult) -> MaskingCheck:
    """Warns where more steps would break more examples.

    That is where the last doubling of the steps of all iterative attacks significantly gains more
    than one point, or many examples break only in the last tenth of every restart.
    """
    name = "not-converged"
    runs = _shares_of_steps(result)
    if not runs or results.leaderboard.mode != "full":
        reason = "No iterative gradient attack is done on all examples."
        return MaskingCheck(name, NOT_TESTED, reason)
    earliest = np.minimum.reduce(runs)[result.clean]
    first = earliest[np.isfinite(earliest)]
    won, n = len(first), len(result.clean)
    if not won:
        return MaskingCheck(name, NOT_TESTED, "No iterative gradient attack breaks an example.")
    late, gained = int((first > LATE_STEPS).sum()), int((first > HALF).sum())
    p = min(tail_of_share(late, won, LATE_SHARE), tail_of_share(gained, n, LEAST_GAIN))
    return MaskingCheck(
        name,
        WARNING if p < P_LIMIT else PASSED,
        f"{late} of {won} first successes came in the last tenth of the steps, and the last"
        f" doubling gained {gained} of {n} examples; a warning needs more than {LATE_SHARE:.0%}"
        f" or {LEAST_GAIN:.0%} of them with p < {P_LIMIT:g} (here p = {p:.2g}, exact).",
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
    made = [certificate for certificate in current if certificate.certified.any()]
    if not made:
        return MaskingCheck(name, NOT_TESTED, "No example is certified, so none can be refuted.")
    tried = [result, *_nearer_results(result, smaller)]
    broken = np.logical_or.reduce([~one.robust() for one in tried])
    judged = [
        _refuted(certificate, broken, certifiers[certificate.certifier]) for certificate in made
    ]
    raised = [sentence for refuted, sentence in judged if refuted]
    if not raised and not any(one.attacks for one in tried):
        return MaskingCheck(name, NOT_TESTED, "No attack is done on the certified examples.")
    sentences = raised or [sentence for _, sentence in judged]
    return MaskingCheck(name, WARNING if raised else PASSED, " ".join(sentences))


def _nearer_results(
    result: DefenseResult, smaller: Iterable[LeaderboardResults]
) -> list[DefenseResult]:
    """The results of the same defense on the same examples within smaller radii."""
    return [
        nearer
        for other in smaller
        if (nearer := same_defense(other, result)) is not None and nearer.has_clean_pass
    ]


def same_defense(other: LeaderboardResults, result: DefenseResult) -> DefenseResult | None:
    """The result of the same defense on the same examples of another leaderboard; None without."""
    found = other.defenses.get(result.defense)
    if found is None or (found.digest, found.examples) != (result.digest, result.examples):
        return None
    return found


def _refuted(
    certificate: CertificateRow, broken: Bits, certifier: CertifierCard
) -> tuple[bool, str]:
    """Whether a certifier is refuted, and the sentence with its numbers."""
    wrong = np.flatnonzero(certificate.certified & broken)
    certified, error = int(certificate.certified.sum()), stated_error(certificate, certifier)
    older = "an older version of " if is_of_older_code(certificate, certifier) else ""
    by = f"{older}{certificate.certifier}"
    refuted = clopper_pearson(len(wrong), certified).low > error
    numbers = ", ".join(map(str, wrong[:NAMED_EXAMPLES])) + (
        " and more" if len(wrong) > NAMED_EXAMPLES else ""
    )
    return refuted, (
        f"Of {certified} examples certified by {by}, {len(wrong)} are broken by"
        f" a verified adversarial example{f' (number {numbers})' if len(wrong) else ''}"
        f"{f'; its stated error is {error:.1%}' if error else ''}."
    )


def current_certificates(
    result: DefenseResult, rows: Iterable[CertificateRow], certifiers: Mapping[str, CertifierCard]
) -> list[CertificateRow]:
    """The certificates of this version of the defense, one of each registered certifier.

    Those of an older version of a certifier stand until it is run again.
    """
    return [p for p in rows if p.defense_digest == result.digest and p.certifier in certifiers]


def is_of_older_code(certificate: CertificateRow, certifier: CertifierCard) -> bool:
    """Whether a certificate was made by another version of its certifier than the present one."""
    return certificate.certifier_digest != certifier.digest


def stated_error(certificate: CertificateRow, certifier: CertifierCard) -> float:
    """The stated probability that a certificate is wrong; 0 where the certifier is exact."""
    return 0.0 if certificate.exact else certifier.error

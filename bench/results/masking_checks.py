"""Signs that a robust accuracy is not what it looks like, each with the numbers behind it.

The first four are the signs of obfuscated gradients of arXiv:1802.00420 (part 3.1), read off the
stored outcomes by example. Clean mistakes are nobody's success.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.cards import AttackCard, CertifierCard
from bench.core.statistics import clopper_pearson
from bench.results.example_results import Bits, DefenseResult, LeaderboardResults, steps_of
from bench.store import CertificateRow

RAISED, CLEAR, NOT_TESTED = "raised", "clear", "not tested"

TOLERANCE = 0.01
"""Share of the examples by which good searches may miss each other's finds."""

BLIND_TOLERANCE = 0.002
"""The same where one of the two only draws points."""

NAMED = 10
"""Examples that a sentence calls by their numbers."""

LATE = 0.9
"""Share of a run's steps after which a first success is late."""

LATE_SHARE = 0.05
"""Share of late first successes from which on the runs were too short."""

_IT_TAKES = "It takes {} attack, both done on all examples."


@dataclass(frozen=True)
class MaskingCheck:
    """One sign, tested or not."""

    name: str
    state: str
    """`raised`, `clear` or `not tested`: the last two are different facts."""
    evidence: str
    """One sentence with the numbers."""


def asks_gradients(attack: AttackCard) -> bool:
    """Whether it follows the gradient of the defense itself."""
    return attack.needs == "gradients" and not attack.source


def is_blind(attack: AttackCard) -> bool:
    """Whether it draws points without following an answer or a gradient of the defense."""
    return attack.samples and not asks_gradients(attack)


def one_step_beats_iterative(played: LeaderboardResults, standing: DefenseResult) -> MaskingCheck:
    """Raised where the best one-step attack breaks more than the best iterative one, by 2 s.e."""
    name = "one-step-beats-iterative"
    gradient = _done(played, standing, gradient=True)
    iterative = [attack for attack in gradient if steps_of(played.attacks[attack]) != 1]
    one = standing.strongest(set(gradient) - set(iterative))
    many = standing.strongest(iterative)
    if one is None or many is None or played.board.mode == "rank":
        return MaskingCheck(
            name, NOT_TESTED, _IT_TAKES.format("a one-step and an iterative gradient")
        )
    by_one, by_many = standing.fallen([one]), standing.fallen([many])
    only_one, only_many = int((by_one & ~by_many).sum()), int((by_many & ~by_one).sum())
    error = paired_error(only_one, only_many, len(by_one))
    alone = int((by_one & ~standing.fallen(iterative)).sum())
    return MaskingCheck(
        name,
        RAISED if only_one - only_many > 2 * error else CLEAR,
        f"{one} breaks {by_one.sum()} of {len(by_one)} and {many} {by_many.sum()}: a difference of"
        f" {only_one - only_many:+d} with a standard error of {error:.1f}; {alone} fell to {one}"
        " and to no iterative attack.",
    )


def paired_error(only_a: int, only_b: int, n: int) -> float:
    """Standard error of only_a - only_b, two counts among n paired examples."""
    return math.sqrt(only_a + only_b - (only_a - only_b) ** 2 / n) if n else 0.0


def black_box_beats_white_box(played: LeaderboardResults, standing: DefenseResult) -> MaskingCheck:
    """Raised where attacks that see less break what no gradient attack breaks."""
    others = _done(played, standing, gradient=False)
    return _missed("black-box-beats-white-box", played, standing, others, TOLERANCE)


def random_beats_gradient(played: LeaderboardResults, standing: DefenseResult) -> MaskingCheck:
    """Raised where drawing points breaks what no gradient attack breaks."""
    others = [a for a in _done(played, standing, gradient=False) if is_blind(played.attacks[a])]
    return _missed("random-beats-gradient", played, standing, others, BLIND_TOLERANCE)


def _done(played: LeaderboardResults, standing: DefenseResult, *, gradient: bool) -> list[str]:
    """Attacks with a figure for this defense, those that follow its gradient or the others."""
    return [name for name in standing.bouts if asks_gradients(played.attacks[name]) == gradient]


def _missed(
    name: str,
    played: LeaderboardResults,
    standing: DefenseResult,
    others: Sequence[str],
    tolerance: float,
) -> MaskingCheck:
    gradient = _done(played, standing, gradient=True)
    if not others or not gradient or played.board.mode == "rank":
        return MaskingCheck(name, NOT_TESTED, _IT_TAKES.format("such an attack and a gradient"))
    only = standing.fallen(others) & ~standing.fallen(gradient)
    allowed = chance(tolerance, len(only))
    return MaskingCheck(
        name,
        RAISED if only.sum() > allowed else CLEAR,
        f"{only.sum()} of {len(only)} fell to {', '.join(others)} and to no gradient attack"
        f" ({', '.join(gradient)}); up to {allowed} would be chance.",
    )


def chance(tolerance: float, n: int) -> int:
    """How many examples a tolerance is: never less than one in a hundred examples or fewer."""
    return max(1, math.floor(tolerance * n))


def unbounded_falls_short(
    standing: DefenseResult, box: Mapping[str, DefenseResult]
) -> MaskingCheck:
    """Raised where examples stand although every image of the pixel box was allowed."""
    name = "unbounded-falls-short"
    free = box.get(standing.defense)
    if free is None or not free.cleaned or not free.bouts:
        return MaskingCheck(
            name, NOT_TESTED, "No attack without a bound is done on these examples."
        )
    left = int(free.robust().sum())
    return MaskingCheck(
        name,
        RAISED if left else CLEAR,
        f"With the whole pixel box allowed, {left} of {len(free.clean)} still stand against"
        f" {', '.join(sorted(free.bouts))}.",
    )


def larger_bound_does_not_help(
    played: LeaderboardResults, standing: DefenseResult, smaller: Iterable[LeaderboardResults]
) -> MaskingCheck:
    """Raised where examples stand here that fell within a smaller radius."""
    name = "larger-bound-does-not-help"
    found = []
    for other in smaller:
        less = other.standings.get(standing.defense)
        common = [] if less is None else sorted(set(less.bouts) & set(standing.bouts))
        if less is not None and common and less.examples == standing.examples:
            lost = int((less.fallen(common) & standing.robust()).sum())
            found.append((lost, other.board.set["eps"]))
    if not found:
        return MaskingCheck(
            name, NOT_TESTED, "No attack is done both here and within a smaller radius."
        )
    lost, eps = max(found)
    n = len(standing.clean)
    return MaskingCheck(
        name,
        RAISED if lost > chance(TOLERANCE, n) else CLEAR,
        f"{lost} of {n} fell within {eps} and stand within {played.board.set['eps']}, which"
        f" contains it; up to {chance(TOLERANCE, n)} would be chance.",
    )


def not_converged(played: LeaderboardResults, standing: DefenseResult) -> MaskingCheck:
    """Raised where many examples first fall in the last tenth of every run that breaks them."""
    name = "not-converged"
    lengths = {a: steps_of(played.attacks[a]) for a in _done(played, standing, gradient=True)}
    runs = [standing.bouts[a].step / steps for a, steps in lengths.items() if steps > 1]
    # In a cascade nobody else tries to break earlier what one attack broke late.
    if not runs or played.board.mode == "rank":
        return MaskingCheck(
            name, NOT_TESTED, "No iterative gradient attack is done on all examples."
        )
    earliest = np.minimum.reduce(runs)[standing.clean]
    first = earliest[np.isfinite(earliest)]
    won, late = len(first), int((first > LATE).sum())
    return MaskingCheck(
        name,
        RAISED if late > max(chance(TOLERANCE, len(standing.clean)), LATE_SHARE * won) else CLEAR,
        f"{late} of {won} first successes came in the last tenth of the steps; more steps would"
        f" find more if that were above {LATE_SHARE:.0%}.",
    )


def soundness_error(
    standing: DefenseResult,
    smaller: Iterable[LeaderboardResults],
    certificates: Iterable[CertificateRow],
    certifiers: Mapping[str, CertifierCard],
) -> MaskingCheck:
    """Raised where a proof covers an example that a verified attempt broke, here or nearer.

    certified <= attacked, example by example: one example refutes a deterministic proof, while a
    statistical one is refuted only by more than its stated error explains.
    """
    name = "soundness-error"
    mine = proofs(standing, certificates, certifiers)
    if not mine or not standing.cleaned:
        return MaskingCheck(
            name, NOT_TESTED, "No proof was made for this defense under these rules."
        )
    broken = ~standing.robust() | _broken_nearer(standing, smaller)
    crossed = [_crossed(proof, broken, certifiers[proof.certifier]) for proof in mine]
    raised = [sentence for refuted, sentence in crossed if refuted]
    told = raised or [sentence for _, sentence in crossed]
    return MaskingCheck(name, RAISED if raised else CLEAR, " ".join(told))


def _broken_nearer(standing: DefenseResult, smaller: Iterable[LeaderboardResults]) -> Bits:
    """[n]: wrong in a smaller ball, which this one contains."""
    found = np.zeros_like(standing.clean)
    for other in smaller:
        less = other.standings.get(standing.defense)
        if less is None or (less.digest, less.examples) != (standing.digest, standing.examples):
            continue
        if less.cleaned:
            found |= ~less.robust()
    return found


def _crossed(proof: CertificateRow, broken: Bits, certifier: CertifierCard) -> tuple[bool, str]:
    """Is the proof refuted, and the sentence with its numbers."""
    wrong = np.flatnonzero(proof.certified & broken)
    proved, error = int(proof.certified.sum()), stated_error(proof, certifier)
    refuted = clopper_pearson(len(wrong), proved).low > error
    named = ", ".join(map(str, wrong[:NAMED])) + (" and more" if len(wrong) > NAMED else "")
    return refuted, (
        f"Of {proved} examples proved by {proof.certifier}, {len(wrong)} are broken by a verified"
        f" attempt{f' (number {named})' if len(wrong) else ''}"
        f"{f'; it says that {error:.1%} may be' if error else ''}."
    )


def proofs(
    standing: DefenseResult,
    certificates: Iterable[CertificateRow],
    certifiers: Mapping[str, CertifierCard],
) -> list[CertificateRow]:
    """The proofs of a defense as it stands, by certifiers as they stand."""
    now = {(standing.digest, card.name, card.digest) for card in certifiers.values()}
    return [p for p in certificates if (p.defense_digest, p.certifier, p.certifier_digest) in now]


def stated_error(proof: CertificateRow, certifier: CertifierCard) -> float:
    """The share of its proofs that a statistical certifier admits to be wrong; 0 by default."""
    return 0.0 if proof.exact else certifier.error

"""The ranking: one row a defense, with everything that says how far to believe its figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.core.cards import CertifierCard
from bench.core.cells import CellState
from bench.core.statistics import Count, RankRange, count_interval, rank_ranges
from bench.results.detection import Rejection, rejection
from bench.results.example_results import Bits, DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.masking_checks import MaskingCheck, proofs, stated_error
from bench.results.verdicts import Context, all_checks, load_context, verdict
from bench.store import CertificateRow, Store

LOW_N = 500
"""With fewer examples nobody is ranked."""


@dataclass(frozen=True)
class Coverage:
    """How many of the required attacks are done, of those that apply to the defense."""

    done: int
    required: int


@dataclass(frozen=True)
class ClaimCheck:
    """A claim beside the interval that was measured."""

    robust: float
    cite: str
    verdict: str
    """`below` where the whole interval lies below the claim, else `holds`; `not testable` where a
    required attack is missing or the row is invalid."""
    sentence: str


@dataclass(frozen=True)
class CertifiedCount:
    """How many examples a certifier proved."""

    certifier: str
    exact: bool
    """Can every other example be broken?"""
    error: float
    """The probability that one of the proofs is wrong; 0 for a deterministic certifier."""
    count: Count


@dataclass(frozen=True)
class RankingRow:
    """One defense on one board."""

    defense: str
    rank: RankRange | None
    """None where the row is provisional, invalid, of few examples, or the board ranks nobody."""
    note: str
    """Why there is no rank; else empty."""
    clean: Count
    robust: Count
    """Right, and broken by no verified attempt of any attack."""
    robust_required: Count
    """The same over the required attacks alone, by which rows are ranked: of nothing where none
    is done, or where a cascade cannot tell."""
    robust_8bit: Count
    """Right, and broken by no attempt that survives rounding to 8 bits; of nothing in a cascade
    and on boards of distances."""
    strongest: str | None
    """The attack that leaves the fewest examples right; a cascade names none."""
    coverage: Coverage
    provisional: bool
    """Is a required attack missing? Then the figure can only fall."""
    low_n: bool
    flags: tuple[MaskingCheck, ...]
    verdict: str
    """`sound`, `suspect` or `invalid`."""
    claim: ClaimCheck | None
    certified: CertifiedCount | None
    """The certificate that covers most; None without one."""
    tier: str
    """How far a stranger's code was locked in."""
    rejects: Rejection | None = None
    """What a detector does to clean images; None without one."""
    further: int = 0
    """Attacks done besides the required ones: they lower `robust` and no rank."""
    tied: int = 0
    """How many others are in its tie group."""


def ranking(store: Store, board: Leaderboard) -> list[RankingRow]:
    """All rows: the ranked ones first, the most robust to the required attacks first."""
    played = load_results(store, board)
    return ranking_rows(played, load_context(store, played, leaderboards(store)))


def ranking_rows(played: LeaderboardResults, around: Context) -> list[RankingRow]:
    """The same from what was read already."""
    drafts = [_row(played, standing, around) for standing in played.standings.values()]
    required = played.board.required
    fit = [played.standings[row.defense] for row in drafts if not row.note]
    places = rank_ranges({standing.defense: standing.robust(required) for standing in fit})
    order = {name: place for place, name in enumerate(places)}

    def first(row: RankingRow) -> tuple[int, bool, int, int, str]:
        place = order.get(row.defense, len(order))
        unfit = row.provisional or row.verdict == "invalid"
        return place, unfit, -row.robust_required.k, -row.robust.k, row.defense

    return sorted((_placed(row, places) for row in drafts), key=first)


def _row(played: LeaderboardResults, standing: DefenseResult, around: Context) -> RankingRow:
    board = played.board
    raised = all_checks(played, standing, around)
    covered = coverage(played, standing)
    opinion = verdict(raised)
    robust = _count(standing, standing.robust())
    complete = standing.cleaned and bool(standing.bouts) and covered.done == covered.required
    return RankingRow(
        defense=standing.defense,
        rank=None,
        note=_why_not(board, standing, covered, opinion),
        clean=_count(standing, standing.clean),
        robust=robust,
        robust_required=alone(standing, board.required),
        robust_8bit=_eight_bit(board, standing),
        # Who came first in a cascade broke the most because it came first.
        strongest=None if board.mode == "rank" else standing.strongest(),
        coverage=covered,
        provisional=not complete,
        low_n=len(standing.clean) < LOW_N,
        flags=raised,
        verdict=opinion,
        claim=_claim(played, standing.defense, robust, opinion, complete=complete),
        certified=best_proof(standing, around.certificates, around.certifiers),
        tier=standing.tier,
        rejects=rejection(played.defenses[standing.defense].rejects, standing.scores),
        further=len(set(standing.bouts) - set(board.required)),
    )


def coverage(played: LeaderboardResults, standing: DefenseResult) -> Coverage:
    """Done and applicable among the required attacks."""
    required = played.board.required
    applies = [attack for attack in required if _applies(played, attack, standing.defense)]
    return Coverage(sum(attack in standing.bouts for attack in applies), len(applies))


def _applies(played: LeaderboardResults, attack: str, defense: str) -> bool:
    """One that was never planned does, unless it goes for a detector that is not there."""
    states = {row.state for row in played.cells.get((defense, attack), ())}
    if states or attack not in played.attacks:
        return states != {CellState.NOT_APPLICABLE}
    detector = played.defenses[defense].rejects is not None
    return detector or not played.attacks[attack].joint


def _why_not(board: Leaderboard, standing: DefenseResult, covered: Coverage, opinion: str) -> str:
    if not board.ranked:
        return "This board is evidence and ranks nobody."
    if standing.examples != board.examples:
        return (
            f"Low n: its answers are so costly that it met the first {len(standing.clean)} of "
            f"{board.n} examples; it is not compared with the others."
        )
    if not standing.cleaned:
        return "Provisional: the clean pass is not done."
    if not standing.bouts or covered.done < covered.required:
        return f"Provisional: {covered.done} of {covered.required} required attacks are done."
    if not covered.required:
        return "No required attack applies to it, so there is nothing to compare it by."
    if opinion == "invalid":
        return "Invalid: a raised flag contradicts the figure."
    if not standing.decided_by(board.required):
        return (
            "Another attack of its cascade broke examples before a required one met them: what the "
            "required attacks alone leave is not known."
        )
    if len(standing.clean) < LOW_N:
        return f"Low n: with fewer than {LOW_N} examples nobody is ranked."
    return ""


def _placed(row: RankingRow, places: Mapping[str, RankRange]) -> RankingRow:
    if row.defense not in places:
        return row
    rank = places[row.defense]
    tied = sum(other.group == rank.group for other in places.values()) - 1
    return replace(row, rank=rank, tied=tied)


def _count(standing: DefenseResult, right: Bits) -> Count:
    """k of n; of nothing while the clean pass is missing, since then nothing is known."""
    return (
        count_interval(int(right.sum()), len(right)) if standing.cleaned else count_interval(0, 0)
    )


def _eight_bit(board: Leaderboard, standing: DefenseResult) -> Count:
    """The figure after rounding; of nothing where what it repairs met no second attempt.

    A cascade spares later attacks what was broken in float alone, and the nearest wrong answer
    lies where the slightest rounding takes it back.
    """
    if board.mode == "rank" or board.nearest:
        return count_interval(0, 0)
    return _count(standing, standing.robust_8bit())


def alone(standing: DefenseResult, attacks: Iterable[str]) -> Count:
    """Right, and broken by none of these attacks.

    Of nothing where none of them is done, or where other attacks decided it.
    """
    names = [name for name in attacks if name in standing.bouts]
    known = bool(names) and standing.decided_by(names)
    return _count(standing, standing.robust(names)) if known else count_interval(0, 0)


def _claim(
    played: LeaderboardResults, defense: str, robust: Count, opinion: str, *, complete: bool
) -> ClaimCheck | None:
    for claim in played.defenses[defense].claims:
        if claim.threat == played.board.name:
            said = claim.robust
            found = _claim_verdict(said, robust, opinion, complete=complete)
            told = _claim_sentence(said, robust, opinion)
            return ClaimCheck(said, claim.cite, found, told)
    return None


def _claim_verdict(said: float, robust: Count, opinion: str, *, complete: bool) -> str:
    """A missing attack can only lower the figure: what is below already stays below."""
    if opinion == "invalid":
        return "not testable"
    if robust.n and robust.high < said:
        return "below"
    return "holds" if complete else "not testable"


def _claim_sentence(said: float, robust: Count, opinion: str) -> str:
    if not robust.n:
        return f"Claimed {said:.1%}; nothing is measured yet."
    doubt = " The row contradicts itself: this settles nothing." if opinion == "invalid" else ""
    return (
        f"Claimed {said:.1%}; measured {robust.k} of {robust.n}, that is between {robust.low:.1%}"
        f" and {robust.high:.1%}.{doubt}"
    )


def best_proof(
    standing: DefenseResult,
    certificates: Iterable[CertificateRow],
    certifiers: Mapping[str, CertifierCard],
) -> CertifiedCount | None:
    """Of the proofs that stand the one that covers most; None without one."""
    mine = proofs(standing, certificates, certifiers)
    if not mine:
        return None
    best = max(mine, key=lambda proof: int(proof.certified.sum()))
    return CertifiedCount(
        certifier=best.certifier,
        exact=best.exact,
        error=stated_error(best, certifiers[best.certifier]),
        count=count_interval(int(best.certified.sum()), len(best.certified)),
    )

"""The ranking: one row per defense, with its figures, intervals, checks and claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.core.cards import CertifierCard
from bench.core.cells import CellState
from bench.core.statistics import Count, RankRange, count_interval, rank_ranges
from bench.results.detection import Rejection, rejection
from bench.results.example_results import Bits, DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.masking_checks import MaskingCheck, current_certificates, stated_error
from bench.results.verdicts import CheckContext, all_checks, load_check_context, verdict
from bench.store import CertificateRow, Store

LOW_N = 500
"""With fewer examples no defense is ranked."""


@dataclass(frozen=True)
class Coverage:
    """Required attacks: done, and applicable to the defense."""

    done: int
    required: int


@dataclass(frozen=True)
class ClaimCheck:
    """A claim compared with the measured interval."""

    robust: float
    cite: str
    verdict: str
    """`below` where the whole interval lies below the claim, else `holds`; `not testable` where a
    required attack is missing or the row is invalid."""
    sentence: str


@dataclass(frozen=True)
class CertifiedCount:
    """The number of examples that a certifier certified."""

    certifier: str
    exact: bool
    """Whether every other example can be broken."""
    error: float
    """Probability that one of the certificates is wrong; 0 for a deterministic certifier."""
    count: Count


@dataclass(frozen=True)
class RankingRow:
    """One defense on one leaderboard."""

    defense: str
    rank: RankRange | None
    """None where the row is provisional, invalid or of few examples, or nothing is ranked here."""
    note: str
    """Why there is no rank; else empty."""
    clean: Count
    robust: Count
    """Right, and broken by no verified adversarial example of any attack."""
    robust_required: Count
    """The same over the required attacks alone, by which rows are ranked; n is 0 where none is
    done, or where other attacks of a cascade decide it."""
    robust_8bit: Count
    """Right, and broken by no adversarial example that survives rounding to 8 bits; n is 0 in a
    cascade and where the goal is `nearest`."""
    strongest: str | None
    """The attack that leaves the fewest examples right; None in a cascade."""
    coverage: Coverage
    provisional: bool
    """Whether a required attack is missing; the figure can then only fall."""
    low_n: bool
    flags: tuple[MaskingCheck, ...]
    verdict: str
    """`sound`, `suspect` or `invalid`."""
    claim: ClaimCheck | None
    certified: CertifiedCount | None
    """The certificate that covers most; None without one."""
    tier: str
    """Isolation of the plugins' code."""
    rejects: Rejection | None = None
    """Clean images that a detector rejects; None without one."""
    further: int = 0
    """Attacks done besides the required ones; they lower `robust` but not the rank."""
    tied: int = 0
    """Number of other rows in its tie group."""


def load_ranking(store: Store, leaderboard: Leaderboard) -> list[RankingRow]:
    """All rows: the ranked ones first, ordered by robustness to the required attacks."""
    results = load_results(store, leaderboard)
    return ranking_rows(results, load_check_context(store, results, leaderboards(store)))


def ranking_rows(results: LeaderboardResults, context: CheckContext) -> list[RankingRow]:
    """The rows of results that are already loaded."""
    drafts = [_row(results, result, context) for result in results.defenses.values()]
    required = results.leaderboard.required
    fit = [results.defenses[row.defense] for row in drafts if not row.note]
    places = rank_ranges({result.defense: result.robust(required) for result in fit})
    order = {name: place for place, name in enumerate(places)}

    def first(row: RankingRow) -> tuple[int, bool, int, int, str]:
        place = order.get(row.defense, len(order))
        unfit = row.provisional or row.verdict == "invalid"
        return place, unfit, -row.robust_required.k, -row.robust.k, row.defense

    return sorted((_placed(row, places) for row in drafts), key=first)


def _row(results: LeaderboardResults, result: DefenseResult, context: CheckContext) -> RankingRow:
    leaderboard = results.leaderboard
    checks = all_checks(results, result, context)
    covered = coverage(results, result)
    row_verdict = verdict(checks)
    robust = _count(result, result.robust())
    complete = result.has_clean_pass and bool(result.attacks) and covered.done == covered.required
    return RankingRow(
        defense=result.defense,
        rank=None,
        note=_why_not(leaderboard, result, covered, row_verdict),
        clean=_count(result, result.clean),
        robust=robust,
        robust_required=robust_count(result, leaderboard.required),
        robust_8bit=_eight_bit(leaderboard, result),
        # The first attack of a cascade breaks the most because it runs first.
        strongest=None if leaderboard.mode == "rank" else result.strongest_attack(),
        coverage=covered,
        provisional=not complete,
        low_n=len(result.clean) < LOW_N,
        flags=checks,
        verdict=row_verdict,
        claim=_claim(results, result.defense, robust, row_verdict, complete=complete),
        certified=best_certificate(result, context.certificates, context.certifiers),
        tier=result.tier,
        rejects=rejection(results.defense_cards[result.defense].rejects, result.clean_scores),
        further=len(set(result.attacks) - set(leaderboard.required)),
    )


def coverage(results: LeaderboardResults, result: DefenseResult) -> Coverage:
    """The required attacks that are done, and those that apply to the defense."""
    required = results.leaderboard.required
    applies = [attack for attack in required if _applies(results, attack, result.defense)]
    return Coverage(sum(attack in result.attacks for attack in applies), len(applies))


def _applies(results: LeaderboardResults, attack: str, defense: str) -> bool:
    """An attack that was never planned applies, unless it attacks a detector that is missing."""
    states = {row.state for row in results.cells.get((defense, attack), ())}
    if states or attack not in results.attack_cards:
        return states != {CellState.NOT_APPLICABLE}
    detector = results.defense_cards[defense].rejects is not None
    return detector or not results.attack_cards[attack].joint


def _why_not(
    leaderboard: Leaderboard, result: DefenseResult, covered: Coverage, row_verdict: str
) -> str:
    if not leaderboard.ranked:
        return "This leaderboard is evidence only; nothing is ranked."
    if result.examples != leaderboard.examples:
        return (
            f"Low n: its answers are so costly that it was evaluated on the first "
            f"{len(result.clean)} of {leaderboard.n} examples; it is not compared with the others."
        )
    if not result.has_clean_pass:
        return "Provisional: the clean pass is not done."
    if not result.attacks or covered.done < covered.required:
        return f"Provisional: {covered.done} of {covered.required} required attacks are done."
    if not covered.required:
        return "No required attack applies to it, so it cannot be compared."
    if row_verdict == "invalid":
        return "Invalid: a warning contradicts the figure."
    if not result.decided_by(leaderboard.required):
        return (
            "Another attack of its cascade broke examples before a required one ran on them: the "
            "figure over the required attacks alone is not known."
        )
    if len(result.clean) < LOW_N:
        return f"Low n: with fewer than {LOW_N} examples nothing is ranked."
    return ""


def _placed(row: RankingRow, places: Mapping[str, RankRange]) -> RankingRow:
    if row.defense not in places:
        return row
    rank = places[row.defense]
    tied = sum(other.group == rank.group for other in places.values()) - 1
    return replace(row, rank=rank, tied=tied)


def _count(result: DefenseResult, right: Bits) -> Count:
    """k of n; 0 of 0 while the clean pass is missing."""
    k, n = (int(right.sum()), len(right)) if result.has_clean_pass else (0, 0)
    return count_interval(k, n)


def _eight_bit(leaderboard: Leaderboard, result: DefenseResult) -> Count:
    """The count after rounding to 8 bits; 0 of 0 in a cascade and where the goal is `nearest`.

    In a cascade an example broken in float alone is not attacked again, and the nearest adversarial
    example is so close to the boundary that rounding undoes it.
    """
    if leaderboard.mode == "rank" or leaderboard.is_nearest:
        return count_interval(0, 0)
    return _count(result, result.robust_8bit())


def robust_count(result: DefenseResult, attacks: Iterable[str]) -> Count:
    """Right examples that none of these broke; 0 of 0 if none is done, or others decide it."""
    names = [name for name in attacks if name in result.attacks]
    known = bool(names) and result.decided_by(names)
    return _count(result, result.robust(names)) if known else count_interval(0, 0)


def _claim(
    results: LeaderboardResults, defense: str, robust: Count, row_verdict: str, *, complete: bool
) -> ClaimCheck | None:
    for claim in results.defense_cards[defense].claims:
        if claim.threat == results.leaderboard.name:
            found = _claim_verdict(claim.robust, robust, row_verdict, complete=complete)
            sentence = _claim_sentence(claim.robust, robust, row_verdict)
            return ClaimCheck(claim.robust, claim.cite, found, sentence)
    return None


def _claim_verdict(claimed: float, robust: Count, row_verdict: str, *, complete: bool) -> str:
    """Compare a claim; `below` holds also while attacks are missing, as they can only lower it."""
    if row_verdict == "invalid":
        return "not testable"
    if robust.n and robust.high < claimed:
        return "below"
    return "holds" if complete else "not testable"


def _claim_sentence(claimed: float, robust: Count, row_verdict: str) -> str:
    if not robust.n:
        return f"Claimed {claimed:.1%}; nothing is measured yet."
    doubt = " The row is invalid, so this decides nothing." if row_verdict == "invalid" else ""
    span = f"between {robust.low:.1%} and {robust.high:.1%}"
    return f"Claimed {claimed:.1%}; measured {robust.k} of {robust.n}, that is {span}.{doubt}"


def best_certificate(
    result: DefenseResult,
    certificates: Iterable[CertificateRow],
    certifiers: Mapping[str, CertifierCard],
) -> CertifiedCount | None:
    """The current certificate with the most examples; None without one."""
    current = current_certificates(result, certificates, certifiers)
    if not current:
        return None
    best = max(current, key=lambda certificate: int(certificate.certified.sum()))
    return CertifiedCount(
        certifier=best.certifier,
        exact=best.exact,
        error=stated_error(best, certifiers[best.certifier]),
        count=count_interval(int(best.certified.sum()), len(best.certified)),
    )

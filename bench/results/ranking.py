"""The ranking: one row per defense, with its figures, intervals, checks and claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.core.audits import Audit
from bench.core.cards import CertifierCard
from bench.core.cells import FAST
from bench.core.statistics import Count, RankRange, count_interval, rank_ranges
from bench.results.detection import Rejection, rejection
from bench.results.example_results import Bits, DefenseResult, LeaderboardResults, load_results
from bench.results.fast_rows import why_no_fast_rank
from bench.results.follow_ups import FollowUp, called_attacks, follow_ups
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.masking_checks import (
    MaskingCheck,
    current_certificates,
    is_of_older_code,
    stated_error,
)
from bench.results.rank_notes import LOW_N, why_no_rank, why_provisional
from bench.results.row_versions import applies
from bench.results.verdicts import CheckContext, all_checks, load_check_context, verdict
from bench.results.version_notes import RowVersions
from bench.store import CertificateRow, Store


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
    older: bool = False
    """Whether it was made by an older version of the certifier."""


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
    """The same over the required attacks alone; n is 0 where none is done, or where other attacks
    of a cascade decide it."""
    robust_ranked: Count
    """The same over the required attacks and the follow-up attacks that the row's own warnings call
    for; rows are ranked by it."""
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
    follow_ups: tuple[FollowUp, ...]
    """The follow-up attacks of each warning."""
    verdict: str
    """`sound`, `suspect` or `invalid`; empty where no attack is done."""
    claim: ClaimCheck | None
    certified: CertifiedCount | None
    """The certificate that covers most; None without one."""
    tier: str
    """Isolation of the plugins' code."""
    rejects: Rejection | None = None
    """Clean images that a detector rejects; None without one."""
    adaptive: tuple[str, ...] = ()
    """Attacks done that were written for this defense (arXiv:1902.06705)."""
    further: int = 0
    """Attacks done besides the required ones; they lower `robust` but not the rank."""
    tied: int = 0
    """Number of other rows that it is tied with."""
    versions: RowVersions | None = None
    """The versions that it shows; None where the database has no others of this row."""
    audit: Audit | None = None
    """What `standard` broke of a sample; None in other modes than `fast`, and until it is done."""
    apart: tuple[str, ...] = ()
    """Other ranked rows whose ranked attacks have other versions: it is never tied with those."""


def load_ranking(store: Store, leaderboard: Leaderboard) -> list[RankingRow]:
    """All rows: the ranked ones first, suspect ones below the others, by the ranked figure."""
    results = load_results(store, leaderboard)
    return ranking_rows(results, load_check_context(store, results, leaderboards(store)))


def ranking_rows(results: LeaderboardResults, context: CheckContext) -> list[RankingRow]:
    """The rows of results that are already loaded."""
    drafts = [_row(results, result, context) for result in results.defenses.values()]
    fit = {row.defense: row for row in drafts if not row.note}
    robust = {
        name: results.defenses[name].robust(ranked_attacks(results, row.flags))
        for name, row in fit.items()
    }
    suspect = {name for name, row in fit.items() if row.verdict == "suspect"}
    apart = rows_apart(results, fit.values())
    pairs = {frozenset((name, other)) for name, others in apart.items() for other in others}
    places = rank_ranges(robust, suspect, pairs)
    order = {name: place for place, name in enumerate(places)}

    def first(row: RankingRow) -> tuple[int, bool, int, int, str]:
        place = order.get(row.defense, len(order))
        unfit = row.provisional or row.verdict == "invalid"
        return place, unfit, -row.robust_ranked.k, -row.robust.k, row.defense

    return sorted((_placed(row, places, apart) for row in drafts), key=first)


def rows_apart(
    results: LeaderboardResults, rows: Iterable[RankingRow]
) -> dict[str, tuple[str, ...]]:
    """The rows that share a ranked attack with a row, in another version; by defense, by name."""
    versions = {
        row.defense: {
            name: attacks[name].version
            for name in ranked_attacks(results, row.flags)
            if name in (attacks := results.defenses[row.defense].attacks)
        }
        for row in rows
    }
    seen: dict[str, set[str]] = {}
    for own in versions.values():
        for attack, version in own.items():
            seen.setdefault(attack, set()).add(version)
    several = [attack for attack, found in seen.items() if len(found) > 1]

    def differ(a: str, b: str) -> bool:
        return any(
            versions[a][attack] != versions[b][attack]
            for attack in several
            if attack in versions[a] and attack in versions[b]
        )

    return {a: tuple(b for b in sorted(versions) if several and differ(a, b)) for a in versions}


def _row(results: LeaderboardResults, result: DefenseResult, context: CheckContext) -> RankingRow:
    leaderboard = results.leaderboard
    checks = all_checks(results, result, context)
    covered = coverage(results, result)
    later = follow_ups(results, result, checks)
    evaluated = result.has_clean_pass and bool(result.attacks)
    row_verdict = verdict(checks, later) if evaluated else ""
    robust = _count(result, result.robust()) if evaluated else count_interval(0, 0)
    complete = result.has_clean_pass and bool(result.attacks) and covered.done == covered.required
    ranked = robust_count(result, ranked_attacks(results, checks))
    audit = context.audits.get(result.defense)
    if leaderboard.mode == FAST:  # all its attacks are required, and none meets every example
        ranked = robust
    return RankingRow(
        defense=result.defense,
        rank=None,
        note=_note(results, result, later, row_verdict, audit),
        clean=_count(result, result.clean),
        robust=robust,
        robust_required=robust_count(result, leaderboard.required),
        robust_ranked=ranked,
        robust_8bit=_eight_bit(leaderboard, result),
        # The first attack of a cascade breaks the most because it runs first.
        strongest=None if leaderboard.mode != "full" else result.strongest_attack(),
        coverage=covered,
        provisional=not complete,
        low_n=len(result.clean) < LOW_N,
        flags=checks,
        follow_ups=later,
        verdict=row_verdict,
        claim=_claim(results, result.defense, robust, row_verdict, complete=complete),
        certified=best_certificate(result, context.certificates, context.certifiers),
        tier=result.tier,
        rejects=rejection(results.defense_cards[result.defense].rejects, result.clean_scores),
        adaptive=tuple(
            name
            for name in result.attacks
            if result.defense in result.attacks[name].card.written_for
        ),
        further=len(set(result.attacks) - set(leaderboard.required)),
        versions=results.versions.get(result.defense),
        audit=audit,
    )


def _note(
    results: LeaderboardResults, result: DefenseResult, later: tuple[FollowUp, ...],
    row_verdict: str, audit: Audit | None,
) -> str:  # fmt: skip
    """Why a row has no rank; empty where it has one."""
    leaderboard = results.leaderboard
    required = _applicable(results, result)
    note = why_no_rank(leaderboard, result, required, row_verdict)
    if note or leaderboard.mode != FAST:
        return note or why_provisional(leaderboard, result, later)
    return why_no_fast_rank(audit, row_verdict)


def ranked_attacks(results: LeaderboardResults, checks: Iterable[MaskingCheck]) -> tuple[str, ...]:
    """The attacks that the ranked figure of a row reads: required, and called for by warnings."""
    return (*results.leaderboard.required, *called_attacks(results, checks))


def coverage(results: LeaderboardResults, result: DefenseResult) -> Coverage:
    """The required attacks that are done, and those that apply to the defense."""
    required = _applicable(results, result)
    return Coverage(sum(attack in result.attacks for attack in required), len(required))


def _applicable(results: LeaderboardResults, result: DefenseResult) -> list[str]:
    """The required attacks that apply to the defense."""
    required = results.leaderboard.required
    return [attack for attack in required if _applies(results, attack, result.defense)]


def _applies(results: LeaderboardResults, attack: str, defense: str) -> bool:
    cells, card = results.cells.get((defense, attack), ()), results.attack_cards.get(attack)
    return applies(cells, card, results.defense_cards[defense])


def _placed(
    row: RankingRow, places: Mapping[str, RankRange], apart: Mapping[str, tuple[str, ...]]
) -> RankingRow:
    if row.defense not in places:
        return row
    rank = places[row.defense]
    return replace(row, rank=rank, tied=len(rank.tied), apart=apart[row.defense])


def _count(result: DefenseResult, right: Bits) -> Count:
    """k of n; 0 of 0 while the clean pass is missing."""
    k, n = (int(right.sum()), len(right)) if result.has_clean_pass else (0, 0)
    return count_interval(k, n)


def _eight_bit(leaderboard: Leaderboard, result: DefenseResult) -> Count:
    """The count after rounding to 8 bits; 0 of 0 in a cascade and where the goal is `nearest`.

    In a cascade an example broken in float alone is not attacked again, and the nearest adversarial
    example is so close to the boundary that rounding undoes it.
    """
    if leaderboard.mode != "full" or leaderboard.is_nearest:
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
        older=is_of_older_code(best, certifiers[best.certifier]),
    )

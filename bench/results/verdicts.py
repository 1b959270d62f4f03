"""All gradient-masking checks of a row: from the outcomes, and from the diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.core.audits import Audit
from bench.core.cards import CertifierCard, DiagnosticCard
from bench.core.cells import CLEAN, CellState
from bench.results import masking_checks
from bench.results.canary_check import CANARY_CHECK, canary_check
from bench.results.check_table import INVALIDATING
from bench.results.example_results import DefenseResult, LeaderboardResults, load_results
from bench.results.fast_rows import load_audits
from bench.results.follow_ups import FollowUp
from bench.results.larger_bound import larger_bound_does_not_help
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import NOT_TESTED, WARNING, MaskingCheck
from bench.store import CertificateRow, EvidenceRow, Store

OLDER_CHECK = "Found by an older version of this check."


def verdict(checks: Iterable[MaskingCheck], follow_ups: Iterable[FollowUp] = ()) -> str:
    """The verdict on a row.

    `invalid` by a warning that contradicts the figure; `suspect` by another one that no follow-up
    attacks answer; else `sound`.
    """
    raised = {check.name for check in checks if check.state == WARNING}
    if raised & INVALIDATING:
        return "invalid"
    answered = {follow_up.check for follow_up in follow_ups if follow_up.answered}
    return "suspect" if raised - answered else "sound"


@dataclass(frozen=True)
class CheckContext:
    """What the checks need besides the results of the leaderboard."""

    unbounded: Mapping[str, DefenseResult]
    """Results by defense, where the whole pixel box is allowed."""
    radii: Sequence[LeaderboardResults]
    """Results of the leaderboards that differ in the radius alone, the smallest first."""
    certificates: Sequence[CertificateRow]
    certifiers: Mapping[str, CertifierCard]
    diagnostics: Mapping[str, DiagnosticCard]
    evidence: Mapping[str, Sequence[EvidenceRow]]
    """By defense."""
    canaries: Mapping[str, EvidenceRow] = field(default_factory=dict)
    """By key of a cell."""
    audits: Mapping[str, Audit] = field(default_factory=dict)
    """By defense, of the suite `fast`."""


def load_check_context(
    store: Store, results: LeaderboardResults, known: Sequence[Leaderboard]
) -> CheckContext:
    """Read the context from the store; `known` are all its leaderboards.

    Variants of threat models are no evidence on others: which ones a database has is chosen by
    who runs them, and must not change a verdict.
    """
    leaderboard = results.leaderboard
    known = [one for one in known if one == leaderboard or not one.is_variant]
    return CheckContext(
        unbounded=_unbounded_results(store, results, known),
        radii=[load_results(store, other) for other in leaderboard.other_radii(known)],
        certificates=[
            certificate
            for examples in dict.fromkeys(s.examples for s in results.defenses.values())
            for certificate in store.certificates(leaderboard.id, examples)
        ],
        certifiers={card.name: card for card in store.cards(CertifierCard)},
        diagnostics={card.name: card for card in store.cards(DiagnosticCard)},
        evidence={
            name: store.evidence(result.digest, result.examples)
            for name, result in results.defenses.items()
        },
        canaries=store.evidence_of(CANARY_CHECK),
        audits=load_audits(store, results),
    )


def _unbounded_results(
    store: Store, results: LeaderboardResults, known: Sequence[Leaderboard]
) -> Mapping[str, DefenseResult]:
    for other in known:
        this = results.leaderboard
        same_data = (other.examples, other.mode) == (this.examples, this.mode)
        if same_data and other.is_unbounded and other.access == "gradients":
            return (
                results.defenses
                if other == results.leaderboard
                else load_results(store, other).defenses
            )
    return {}


def all_checks(
    results: LeaderboardResults, result: DefenseResult, context: CheckContext
) -> tuple[MaskingCheck, ...]:
    """Every check of one defense, also those not tested."""
    computed, evidence = _computed_checks(results, result, context), context.evidence
    names = {check.name for check in computed}
    others = [card for name, card in sorted(context.diagnostics.items()) if name not in names]
    found = evidence.get(result.defense, ())
    return (*computed, *(diagnostic_check(card, found) for card in others))


def _computed_checks(
    results: LeaderboardResults, result: DefenseResult, context: CheckContext
) -> tuple[MaskingCheck, ...]:
    """The checks that are computed from recorded outcomes and certificates."""
    radius = results.leaderboard.radius
    smaller = [other for other in context.radii if other.leaderboard.radius < radius]
    return (
        masking_checks.one_step_beats_iterative(results, result),
        masking_checks.black_box_beats_white_box(results, result),
        masking_checks.unbounded_falls_short(result, context.unbounded),
        masking_checks.random_beats_gradient(results, result),
        larger_bound_does_not_help(results, result, context.radii),
        masking_checks.not_converged(results, result),
        masking_checks.soundness_error(result, smaller, context.certificates, context.certifiers),
        canary_check(_finished_cells(results, result), context.canaries),
    )


def _finished_cells(results: LeaderboardResults, result: DefenseResult) -> list[str]:
    """Keys of the finished cells of attacks on one defense."""
    return [
        row.key
        for (name, attack), rows in results.cells.items()
        for row in rows
        if name == result.defense and attack != CLEAN and row.state is CellState.DONE
    ]


def diagnostic_check(diagnostic: DiagnosticCard, evidence: Iterable[EvidenceRow]) -> MaskingCheck:
    """The check of a diagnostic; the finding of older code stands, and says so, until it is run."""
    for found in evidence:
        if found.diagnostic == diagnostic.name:
            older = "" if found.source == diagnostic.digest else f" {OLDER_CHECK}"
            return MaskingCheck(found.diagnostic, found.finding, f"{found.sentence}{older}")
    return MaskingCheck(diagnostic.name, NOT_TESTED, "Not run on these examples.")

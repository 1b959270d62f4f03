"""All gradient-masking checks of a row: from the outcomes, and from the diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.core.cards import CertifierCard, DiagnosticCard
from bench.results import masking_checks
from bench.results.example_results import DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import NOT_TESTED, WARNING, MaskingCheck
from bench.store import CertificateRow, EvidenceRow, Store

INVALIDATING = frozenset({"soundness-error", "deterministic", "batch-independent"})
"""Checks whose warning makes a row invalid: its figure is not a fact about the defense."""


def verdict(checks: Iterable[MaskingCheck]) -> str:
    """`invalid` by a warning that contradicts the figure, `suspect` by another, else `sound`."""
    raised = {check.name for check in checks if check.state == WARNING}
    if raised & INVALIDATING:
        return "invalid"
    return "suspect" if raised else "sound"


@dataclass(frozen=True)
class CheckContext:
    """What the checks need besides the results of the leaderboard."""

    unbounded: Mapping[str, DefenseResult]
    """Results by defense, where the whole pixel box is allowed."""
    smaller: Sequence[LeaderboardResults]
    """Results of the leaderboards that differ in a smaller radius alone."""
    certificates: Sequence[CertificateRow]
    certifiers: Mapping[str, CertifierCard]
    diagnostics: Mapping[str, DiagnosticCard]
    evidence: Mapping[str, Sequence[EvidenceRow]]
    """By defense."""


def load_check_context(
    store: Store, results: LeaderboardResults, known: Sequence[Leaderboard]
) -> CheckContext:
    """Read the context from the store; `known` are all its leaderboards."""
    leaderboard = results.leaderboard
    smaller = [
        other for other in leaderboard.other_radii(known) if other.radius < leaderboard.radius
    ]
    return CheckContext(
        unbounded=_unbounded_results(store, results, known),
        smaller=[load_results(store, other) for other in smaller],
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
    return (
        masking_checks.one_step_beats_iterative(results, result),
        masking_checks.black_box_beats_white_box(results, result),
        masking_checks.unbounded_falls_short(result, context.unbounded),
        masking_checks.random_beats_gradient(results, result),
        masking_checks.larger_bound_does_not_help(results, result, context.smaller),
        masking_checks.not_converged(results, result),
        masking_checks.soundness_error(
            result, context.smaller, context.certificates, context.certifiers
        ),
    )


def diagnostic_check(diagnostic: DiagnosticCard, evidence: Iterable[EvidenceRow]) -> MaskingCheck:
    """The check of a diagnostic, from the finding of its current code."""
    for found in evidence:
        if (found.diagnostic, found.source) == (diagnostic.name, diagnostic.digest):
            return MaskingCheck(found.diagnostic, found.finding, found.sentence)
    return MaskingCheck(diagnostic.name, NOT_TESTED, "Not run on these examples.")

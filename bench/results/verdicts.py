"""All flags of a row: the signs read off the outcomes, and what the diagnostics noted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.core.cards import CertifierCard, DiagnosticCard
from bench.results import masking_checks
from bench.results.example_results import DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import NOT_TESTED, RAISED, MaskingCheck
from bench.store import CertificateRow, Store
from bench.store import EvidenceRow as Note

INVALIDATING = frozenset({"soundness-error", "deterministic", "batch-independent"})
"""Flags after which a row contradicts itself: its figure is no fact about the defense."""


def verdict(flags: Iterable[MaskingCheck]) -> str:
    """`invalid` where the row contradicts itself, `suspect` where any flag is raised."""
    raised = {flag.name for flag in flags if flag.state == RAISED}
    if raised & INVALIDATING:
        return "invalid"
    return "suspect" if raised else "sound"


@dataclass(frozen=True)
class Context:
    """What is known of a board's defenses besides the board."""

    box: Mapping[str, DefenseResult]
    """By defense, where the whole pixel box is allowed."""
    smaller: Sequence[LeaderboardResults]
    """The boards that differ in a smaller radius alone."""
    certificates: Sequence[CertificateRow]
    certifiers: Mapping[str, CertifierCard]
    diagnostics: Mapping[str, DiagnosticCard]
    notes: Mapping[str, Sequence[Note]]
    """By defense."""


def load_context(store: Store, played: LeaderboardResults, known: Sequence[Leaderboard]) -> Context:
    """Read them from the store; `known` are all its boards."""
    board = played.board
    smaller = [kin for kin in board.relatives(known) if kin.radius < board.radius]
    return Context(
        box=_box(store, played, known),
        smaller=[load_results(store, kin) for kin in smaller],
        certificates=[
            proof
            for examples in dict.fromkeys(s.examples for s in played.standings.values())
            for proof in store.certificates(board.id, examples)
        ],
        certifiers={card.name: card for card in store.cards(CertifierCard)},
        diagnostics={card.name: card for card in store.cards(DiagnosticCard)},
        notes={
            name: store.evidence(standing.digest, standing.examples)
            for name, standing in played.standings.items()
        },
    )


def _box(
    store: Store, played: LeaderboardResults, known: Sequence[Leaderboard]
) -> Mapping[str, DefenseResult]:
    for other in known:
        here = played.board
        same_data = (other.examples, other.mode) == (here.examples, here.mode)
        if same_data and other.unbounded and other.access == "gradients":
            return (
                played.standings if other == played.board else load_results(store, other).standings
            )
    return {}


def all_checks(
    played: LeaderboardResults, standing: DefenseResult, around: Context
) -> tuple[MaskingCheck, ...]:
    """Every sign of one defense, the untested ones too."""
    computed = (
        masking_checks.one_step_beats_iterative(played, standing),
        masking_checks.black_box_beats_white_box(played, standing),
        masking_checks.unbounded_falls_short(standing, around.box),
        masking_checks.random_beats_gradient(played, standing),
        masking_checks.larger_bound_does_not_help(played, standing, around.smaller),
        masking_checks.not_converged(played, standing),
        masking_checks.soundness_error(
            standing, around.smaller, around.certificates, around.certifiers
        ),
    )
    taken = {flag.name for flag in computed}
    others = [card for name, card in sorted(around.diagnostics.items()) if name not in taken]
    return (
        *computed,
        *(diagnostic_checks(card, around.notes.get(standing.defense, ())) for card in others),
    )


def diagnostic_checks(diagnostic: DiagnosticCard, notes: Iterable[Note]) -> MaskingCheck:
    """What a diagnostic has noted as its code stands now."""
    for note in notes:
        if (note.diagnostic, note.source) == (diagnostic.name, diagnostic.digest):
            return MaskingCheck(note.diagnostic, note.finding, note.sentence)
    return MaskingCheck(diagnostic.name, NOT_TESTED, "Not examined on these examples.")

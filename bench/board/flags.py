"""All flags of a row: the signs read off the outcomes, and what the diagnostics noted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.board import signs
from bench.board.boards import Board
from bench.board.played import Played, Standing, load
from bench.board.signs import NOT_TESTED, RAISED, Flag
from bench.records import Card
from bench.store import Certificate, Store
from bench.store import Evidence as Note

INVALIDATING = frozenset({"soundness-error", "deterministic", "batch-independent"})
"""Flags after which a row contradicts itself: its figure is no fact about the defense."""


def verdict(flags: Iterable[Flag]) -> str:
    """`invalid` where the row contradicts itself, `suspect` where any flag is raised."""
    raised = {flag.name for flag in flags if flag.state == RAISED}
    if raised & INVALIDATING:
        return "invalid"
    return "suspect" if raised else "sound"


@dataclass(frozen=True)
class Surroundings:
    """What is known of a board's defenses besides the board."""

    box: Mapping[str, Standing]
    """By defense, where the whole pixel box is allowed."""
    smaller: Sequence[Played]
    """The boards that differ in a smaller radius alone."""
    certificates: Sequence[Certificate]
    certifiers: Mapping[str, Card]
    diagnostics: Mapping[str, Card]
    notes: Mapping[str, Sequence[Note]]
    """By defense."""


def surroundings(store: Store, played: Played, known: Sequence[Board]) -> Surroundings:
    """Read them from the store; `known` are all its boards."""
    board = played.board
    smaller = [kin for kin in board.relatives(known) if kin.radius < board.radius]
    return Surroundings(
        box=_box(store, played, known),
        smaller=[load(store, kin) for kin in smaller],
        certificates=[
            proof
            for examples in dict.fromkeys(s.examples for s in played.standings.values())
            for proof in store.certificates(board.id, examples)
        ],
        certifiers={card.name: card for card in store.cards("certifier")},
        diagnostics={card.name: card for card in store.cards("diagnostic")},
        notes={
            name: store.evidence(standing.digest, standing.examples)
            for name, standing in played.standings.items()
        },
    )


def _box(store: Store, played: Played, known: Sequence[Board]) -> Mapping[str, Standing]:
    for other in known:
        here = played.board
        same_data = (other.examples, other.mode) == (here.examples, here.mode)
        if same_data and other.unbounded and other.access == "gradients":
            return played.standings if other == played.board else load(store, other).standings
    return {}


def flags(played: Played, standing: Standing, around: Surroundings) -> tuple[Flag, ...]:
    """Every sign of one defense, the untested ones too."""
    computed = (
        signs.one_step_beats_iterative(played, standing),
        signs.black_box_beats_white_box(played, standing),
        signs.unbounded_falls_short(standing, around.box),
        signs.random_beats_gradient(played, standing),
        signs.larger_bound_does_not_help(played, standing, around.smaller),
        signs.not_converged(played, standing),
        signs.soundness_error(standing, around.smaller, around.certificates, around.certifiers),
    )
    taken = {flag.name for flag in computed}
    others = [card for name, card in sorted(around.diagnostics.items()) if name not in taken]
    return (*computed, *(found(card, around.notes.get(standing.defense, ())) for card in others))


def found(diagnostic: Card, notes: Iterable[Note]) -> Flag:
    """What a diagnostic has noted as its code stands now."""
    for note in notes:
        if (note.diagnostic, note.source) == (diagnostic.name, diagnostic.digest):
            return Flag(note.diagnostic, note.finding, note.sentence)
    return Flag(diagnostic.name, NOT_TESTED, "Not examined on these examples.")

"""One defense in full: its row, its cells, its curves, its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core.cards import CertifierCard
from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.core.outcomes import KeptImage
from bench.core.statistics import Count, count_interval
from bench.results.detection import Roc, curve
from bench.results.example_results import (
    AttackResult,
    DefenseResult,
    Floats,
    LeaderboardResults,
    load_results,
)
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.matrix import MatrixCell, matrix_cells
from bench.results.ranking import CertifiedCount, RankingRow, best_proof, coverage, ranking_rows
from bench.results.verdicts import load_context
from bench.store import Store


@dataclass(frozen=True)
class AccuracyCurve:
    """How many examples are still right as the attacker may spend more: a falling staircase."""

    x: Floats
    """Where it falls: steps, forwards or distances, rising. It starts at 0."""
    right: npt.NDArray[np.int64]
    """Examples still right at and beyond x."""
    n: int


@dataclass(frozen=True)
class RadiusPoint:
    """What a whole board says at its one radius."""

    eps: str
    """As an exact fraction."""
    radius: float
    robust: Count
    certified: CertifiedCount | None
    """What is proved there: a floor under the truth, as `robust` is a ceiling over it."""
    board: str
    complete: bool
    """Are all required attacks done?"""


@dataclass(frozen=True)
class DefenseReport:
    """Everything that is known of one defense on one board."""

    row: RankingRow
    squares: tuple[MatrixCell, ...]
    steps: Mapping[str, AccuracyCurve]
    """By attack, against steps: those of earlier runs count."""
    forwards: Mapping[str, AccuracyCurve]
    """By attack, against forward passes, those with a gradient included."""
    distances: Mapping[str, AccuracyCurve]
    """Against the radius, by attack of the distance board for this set and these examples."""
    points: tuple[RadiusPoint, ...]
    """Boards that differ in their radius alone, this one among them; never part of a curve."""
    images: Mapping[str, tuple[KeptImage, ...]]
    """By attack."""
    rocs: Mapping[str, Roc]
    """By attack, where the defense rejects."""


def defense_report(store: Store, board: Leaderboard, defense: str) -> DefenseReport:
    """One defense on one board; BenchError where it was not played there."""
    played, known = load_results(store, board), leaderboards(store)
    standing = played.standings.get(defense)
    if standing is None:
        names = ", ".join(played.standings) or "none yet"
        raise BenchError(f"{defense!r} was not played on {board.name}; played: {names}.")
    mine = ranking_rows(played, load_context(store, played, known))
    met = {name: bout for name, bout in standing.bouts.items() if bout.faced.any()}
    return DefenseReport(
        row=next(row for row in mine if row.defense == defense),
        squares=tuple(square for square in matrix_cells(played) if square.defense == defense),
        steps={a: _among(bout, bout.total, standing) for a, bout in met.items()},
        forwards={a: _among(bout, bout.forwards, standing) for a, bout in met.items()},
        distances=_distances(store, played, known, defense),
        points=_points(store, played, known, defense),
        images=_images(store, played, defense),
        rocs=_rocs(standing),
    )


def _rocs(standing: DefenseResult) -> Mapping[str, Roc]:
    found = {name: curve(standing.scores, bout.attacked) for name, bout in standing.bouts.items()}
    return {name: roc for name, roc in found.items() if roc is not None}


def _among(bout: AttackResult, spent: Floats, standing: DefenseResult) -> AccuracyCurve:
    """The staircase of the examples that the attack met; in a cascade these are not all."""
    return falling(spent[bout.faced], standing.clean[bout.faced])


def falling(spent: Floats, clean: npt.NDArray[np.bool_]) -> AccuracyCurve:
    """The staircase of examples right on the clean image, each falling at what was spent on it.

    `spent` [n] is inf where an example never fell.
    """
    falls = spent[clean & np.isfinite(spent)]
    x, how_many = np.unique(np.concatenate([[0.0], falls]), return_counts=True)
    how_many[0] -= 1
    return AccuracyCurve(x, int(clean.sum()) - np.cumsum(how_many), len(clean))


def _distances(
    store: Store, played: LeaderboardResults, known: Iterable[Leaderboard], defense: str
) -> Mapping[str, AccuracyCurve]:
    for other in known:
        if other.nearest and _same_space(other, played.board):
            far = played if other == played.board else load_results(store, other)
            if defense in far.standings:
                return _distance_curves(far.standings[defense])
    return {}


def _same_space(other: Leaderboard, board: Leaderboard) -> bool:
    return (other.examples, other.set["name"], other.mode) == (
        board.examples, board.set["name"], board.mode,
    )  # fmt: skip


def _distance_curves(standing: DefenseResult) -> Mapping[str, AccuracyCurve]:
    return {a: falling(bout.distance, standing.clean) for a, bout in standing.bouts.items()}


def _points(
    store: Store, played: LeaderboardResults, known: Iterable[Leaderboard], defense: str
) -> tuple[RadiusPoint, ...]:
    if played.board.nearest:
        return ()
    others = [load_results(store, kin) for kin in played.board.relatives(known)]
    both = [board for board in (played, *others) if defense in board.standings]
    both.sort(key=lambda one: one.board.radius)
    return tuple(
        _point(store, one, one.standings[defense]) for one in both if _has_figure(one, defense)
    )


def _has_figure(played: LeaderboardResults, defense: str) -> bool:
    return played.standings[defense].cleaned and bool(played.standings[defense].bouts)


def _point(store: Store, played: LeaderboardResults, standing: DefenseResult) -> RadiusPoint:
    board, covered = played.board, coverage(played, standing)
    certifiers = {card.name: card for card in store.cards(CertifierCard)}
    return RadiusPoint(
        eps=str(board.set["eps"]),
        radius=board.radius,
        robust=count_interval(int(standing.robust().sum()), len(standing.clean)),
        certified=best_proof(standing, store.certificates(board.id, standing.examples), certifiers),
        board=board.name,
        complete=covered.done == covered.required,
    )


def _images(
    store: Store, played: LeaderboardResults, defense: str
) -> Mapping[str, tuple[KeptImage, ...]]:
    found: dict[str, tuple[KeptImage, ...]] = {}
    for (name, attack), cells in played.cells.items():
        done = [row.key for row in cells if row.state == CellState.DONE]
        if name == defense and done:
            found[attack] = tuple(store.images(done[0]))
    return {attack: images for attack, images in found.items() if images}

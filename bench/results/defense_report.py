"""The report of one defense: its row, cells, curves and images."""

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
from bench.results.detection import DetectorRoc, roc_curve
from bench.results.example_results import (
    AttackResult,
    DefenseResult,
    Floats,
    LeaderboardResults,
    load_results,
)
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.masking_checks import same_defense
from bench.results.matrix import MatrixCell, matrix_cells
from bench.results.measures import Measures, measures, robust_on_correct
from bench.results.pairwise import Separation, row_separations
from bench.results.point_texts import point_text
from bench.results.ranking import (
    CertifiedCount,
    RankingRow,
    best_certificate,
    coverage,
    ranking_rows,
)
from bench.results.verdicts import load_check_context
from bench.store import Store


@dataclass(frozen=True)
class AccuracyCurve:
    """Correct examples against the attacker's effort: a step function that never rises."""

    x: Floats
    """[k]: efforts at which it falls (steps, queries or distances), rising from 0."""
    correct: npt.NDArray[np.int64]
    """[k]: examples still correct at and beyond x."""
    n: int


@dataclass(frozen=True)
class RadiusPoint:
    """The figures of a leaderboard at its radius."""

    eps: str
    """As an exact fraction."""
    radius: float
    robust: Count
    certified: CertifiedCount | None
    """Certified accuracy: a lower bound of robust accuracy, as `robust` is an upper bound."""
    leaderboard: str
    complete: bool
    """Whether all required attacks are done."""


@dataclass(frozen=True)
class DefenseReport:
    """The results of one defense on one leaderboard."""

    row: RankingRow
    cells: tuple[MatrixCell, ...]
    steps: Mapping[str, AccuracyCurve]
    """By attack, against steps; those of earlier restarts count."""
    forwards: Mapping[str, AccuracyCurve]
    """By attack, against queries, those with a gradient evaluation included."""
    distances: Mapping[str, AccuracyCurve]
    """Against the radius, by attack of the nearest-example threat model on the same examples."""
    radii: tuple[RadiusPoint, ...]
    """This leaderboard and those that differ in the radius alone."""
    images: Mapping[str, tuple[KeptImage, ...]]
    points: Mapping[str, Mapping[int, str]]
    """By attack and item: the point behind a kept image in words; empty where points are images."""
    """By attack."""
    rocs: Mapping[str, DetectorRoc]
    """By attack, where the defense rejects."""
    robust_on_correct: Count
    """Robust to all attacks, of the examples that are right on the clean image."""
    measures: Measures
    separation: Separation | None
    """What would change its rank; None without a rank or a neighbour."""


def defense_report(store: Store, leaderboard: Leaderboard, defense: str) -> DefenseReport:
    """The report of one defense on one leaderboard.

    Raises BenchError where the defense was not evaluated there.
    """
    results, known = load_results(store, leaderboard), leaderboards(store)
    result = results.defenses.get(defense)
    if result is None:
        names = ", ".join(results.defenses) or "none yet"
        raise BenchError(
            f"{defense!r} was not evaluated on {leaderboard.name}; evaluated: {names}."
        )
    rows = ranking_rows(results, load_check_context(store, results, known))
    done = {name: attack for name, attack in result.attacks.items() if attack.evaluated.any()}
    return DefenseReport(
        row=next(row for row in rows if row.defense == defense),
        cells=tuple(cell for cell in matrix_cells(results) if cell.defense == defense),
        steps={a: _curve_over(attack, attack.total_steps, result) for a, attack in done.items()},
        forwards={a: _curve_over(attack, attack.forwards, result) for a, attack in done.items()},
        distances=_distances(store, results, known, defense),
        radii=_radius_points(store, results, known, defense),
        images=(images := _images(store, results, defense)),
        points=_points(store, results, defense, images),
        rocs=_rocs(result),
        robust_on_correct=robust_on_correct(result),
        measures=measures(results, result),
        separation=row_separations(results, rows).get(defense),
    )


def _rocs(result: DefenseResult) -> Mapping[str, DetectorRoc]:
    found = {
        name: roc_curve(result.clean_scores, attack.scores)
        for name, attack in result.attacks.items()
    }
    return {name: roc for name, roc in found.items() if roc is not None}


def _curve_over(attack: AttackResult, spent: Floats, result: DefenseResult) -> AccuracyCurve:
    """The curve over the examples that the attack was run on; in a cascade these are not all."""
    return accuracy_curve(spent[attack.evaluated], result.clean[attack.evaluated])


def accuracy_curve(spent: Floats, clean: npt.NDArray[np.bool_]) -> AccuracyCurve:
    """The curve of the examples that are right on the clean image.

    `spent` [n] is the effort that broke an example, inf where it is unbroken; `clean` [n] is
    True where an example is right on the clean image.
    """
    falls = spent[clean & np.isfinite(spent)]
    x, how_many = np.unique(np.concatenate([[0.0], falls]), return_counts=True)
    how_many[0] -= 1
    return AccuracyCurve(x, int(clean.sum()) - np.cumsum(how_many), len(clean))


def _distances(
    store: Store, results: LeaderboardResults, known: Iterable[Leaderboard], defense: str
) -> Mapping[str, AccuracyCurve]:
    for other in known:
        if other.is_nearest and _same_space(other, results.leaderboard):
            nearest = results if other == results.leaderboard else load_results(store, other)
            same = same_defense(nearest, results.defenses[defense])
            if same is not None:
                return _distance_curves(same)
    return {}


def _same_space(other: Leaderboard, leaderboard: Leaderboard) -> bool:
    return (other.examples, other.set["name"], other.mode) == (
        leaderboard.examples, leaderboard.set["name"], leaderboard.mode,
    )  # fmt: skip


def _distance_curves(result: DefenseResult) -> Mapping[str, AccuracyCurve]:
    return {
        a: accuracy_curve(attack.distance, result.clean) for a, attack in result.attacks.items()
    }


def _radius_points(
    store: Store, results: LeaderboardResults, known: Iterable[Leaderboard], defense: str
) -> tuple[RadiusPoint, ...]:
    if results.leaderboard.is_nearest:
        return ()
    others = [load_results(store, other) for other in results.leaderboard.other_radii(known)]
    here = results.defenses[defense]
    everywhere = [one for one in (results, *others) if same_defense(one, here) is not None]
    everywhere.sort(key=lambda one: one.leaderboard.radius)
    return tuple(
        _radius_point(store, one, one.defenses[defense])
        for one in everywhere
        if _has_figure(one, defense)
    )


def _has_figure(results: LeaderboardResults, defense: str) -> bool:
    return results.defenses[defense].has_clean_pass and bool(results.defenses[defense].attacks)


def _radius_point(store: Store, results: LeaderboardResults, result: DefenseResult) -> RadiusPoint:
    leaderboard, covered = results.leaderboard, coverage(results, result)
    certifiers = {card.name: card for card in store.cards(CertifierCard)}
    return RadiusPoint(
        eps=str(leaderboard.set["eps"]),
        radius=leaderboard.radius,
        robust=count_interval(int(result.robust().sum()), len(result.clean)),
        certified=best_certificate(
            result, store.certificates(leaderboard.id, result.examples), certifiers
        ),
        leaderboard=leaderboard.name,
        complete=covered.done == covered.required,
    )


def _images(
    store: Store, results: LeaderboardResults, defense: str
) -> Mapping[str, tuple[KeptImage, ...]]:
    found: dict[str, tuple[KeptImage, ...]] = {}
    for (name, attack), cells in results.cells.items():
        done = [row.key for row in cells if row.state == CellState.DONE]
        if name == defense and done:
            found[attack] = tuple(store.images(done[0]))
    return {attack: images for attack, images in found.items() if images}


def _points(
    store: Store, results: LeaderboardResults, defense: str,
    images: Mapping[str, tuple[KeptImage, ...]],
) -> Mapping[str, Mapping[int, str]]:  # fmt: skip
    """The points behind the kept images, in words."""
    found: dict[str, Mapping[int, str]] = {}
    for attack, kept in images.items():
        rows = results.cells[defense, attack]
        known = store.points(next(row.key for row in rows if row.state == CellState.DONE))
        if known is not None:
            place = {int(item): at for at, item in enumerate(known[0])}
            shown = (image.item for image in kept if image.item in place)
            perturbation = results.leaderboard.set
            found[attack] = {i: point_text(perturbation, known[1][place[i]]) for i in shown}
    return found

"""The matrix: robust accuracy of every defense under every attack, and the state of open cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.cells import CLEAN, CellState
from bench.core.statistics import Count, count_interval
from bench.results.detection import Detection, detector_counts
from bench.results.example_results import (
    DefenseResult,
    LeaderboardResults,
    load_results,
)
from bench.results.leaderboards import Leaderboard
from bench.store import CellRow, Store

_BY_PROGRESS = [
    CellState.DONE,
    CellState.RUNNING,
    CellState.FAILED,
    CellState.MISSING,
    CellState.SKIPPED,
    CellState.NOT_APPLICABLE,
]
"""Of several seeds the state that comes first here is that of the matrix cell."""


@dataclass(frozen=True)
class MatrixCell:
    """One attack against one defense: all finished seeds together, or all seeds until then."""

    defense: str
    attack: str
    state: str
    reason: str
    """Why it has no figure; empty where it has one."""
    robust: Count | None
    """Right on the clean image and not broken, of all examples; in a cascade of those evaluated."""
    out_of_ball: int | None
    """Items whose candidate the referee refused."""
    fragile: int | None
    forwards: int | None
    gradients: int | None
    seconds: float
    """CPU seconds; so far, where the cell is not finished."""
    items: int
    items_done: int
    detection: Detection | None = None
    """The detector of a rejecting defense against this attack; None where there is no detector."""


def load_matrix(store: Store, leaderboard: Leaderboard) -> list[MatrixCell]:
    """The matrix of every planned or required attack against every defense, both by name.

    The attacks of a cascade are in the order in which they ran.
    """
    return matrix_cells(load_results(store, leaderboard))


def matrix_cells(results: LeaderboardResults) -> list[MatrixCell]:
    """The matrix of results that are already loaded."""
    attacks = _attacks(results)
    return [
        matrix_cell(results, defense, attack) for defense in results.defenses for attack in attacks
    ]


def _attacks(results: LeaderboardResults) -> list[str]:
    """By name; in a cascade each after those that ran before it, and those without a cell last."""
    planned = {attack for _, attack in results.cells if attack != CLEAN}
    before = _before(results)
    left = sorted(
        planned | set(results.leaderboard.required), key=lambda name: (name not in before, name)
    )
    if results.leaderboard.mode != "rank":
        return sorted(left)
    found: list[str] = []
    while left:
        # Cascades of different versions may contradict each other; then the name decides.
        free = (name for name in left if not before.get(name, set()) & set(left))
        found.append(next(free, left[0]))
        left.remove(found[-1])
    return found


def _before(results: LeaderboardResults) -> dict[str, set[str]]:
    """By attack: the attacks that ran just before it in any cascade."""
    rows = [row for rows in results.cells.values() for row in rows if row.cell.attack != CLEAN]
    attacks, found = {row.key: row.cell.attack for row in rows}, dict[str, set[str]]()
    for row in rows:
        if row.cell.before or row.state == CellState.DONE:
            found.setdefault(row.cell.attack, set()).update(
                {attacks.get(row.cell.before, "")} - {row.cell.attack}
            )
    return found


def matrix_cell(results: LeaderboardResults, defense: str, attack: str) -> MatrixCell:
    """The matrix cell of one attack against one defense."""
    rows = results.cells.get((defense, attack), ())
    done = [row for row in rows if row.state == CellState.DONE]
    counted = done or rows
    furthest = min(rows, key=lambda row: _BY_PROGRESS.index(row.state), default=None)
    return MatrixCell(
        defense=defense,
        attack=attack,
        state=str(furthest.state if furthest else CellState.MISSING),
        reason=_reason(furthest, results.outdated.get((defense, attack), "")),
        robust=_robust(results.leaderboard, results.defenses[defense], attack),
        out_of_ball=_sum(done, "out_of_ball"),
        fragile=_sum(done, "fragile"),
        forwards=_sum(done, "forwards"),
        gradients=_sum(done, "gradients"),
        seconds=sum(row.seconds for row in counted),
        items=sum(row.cell.items for row in counted),
        items_done=sum(row.items_done for row in counted),
        detection=_detection(results.defenses[defense], attack),
    )


def _detection(result: DefenseResult, attack: str) -> Detection | None:
    found = result.attacks.get(attack)
    return None if found is None else detector_counts(result.clean_scores, found.scores)


def _reason(furthest: CellRow | None, changed: str) -> str:
    if furthest is None and changed:
        return f"Evaluated with an older version of {changed}; run it again."
    if furthest is None:
        return "Not planned; name the attack in `bench run --attack`."
    return "" if furthest.state == CellState.DONE else furthest.reason


def _robust(leaderboard: Leaderboard, result: DefenseResult, attack: str) -> Count | None:
    found = result.attacks.get(attack)
    if found is None:
        return None
    robust = ~found.broken & result.clean if result.has_clean_pass else ~found.broken
    among = found.evaluated if leaderboard.mode == "rank" else np.ones_like(found.evaluated)
    return count_interval(int((robust & among).sum()), int(among.sum()))


def _sum(done: Sequence[CellRow], name: str) -> int | None:
    figures = [row.figures for row in done if row.figures is not None]
    return sum(getattr(one, name) for one in figures) if figures else None

"""The matrix: how every attack fared against every defense, with the state of what has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.cells import CLEAN, CellState
from bench.core.statistics import Count, count_interval
from bench.results.detection import Detection, detection
from bench.results.example_results import (
    AttackResult,
    DefenseResult,
    LeaderboardResults,
    load_results,
)
from bench.results.leaderboards import Leaderboard
from bench.store import CellRow, Store

_SAYS_MOST = [
    CellState.DONE,
    CellState.RUNNING,
    CellState.FAILED,
    CellState.MISSING,
    CellState.SKIPPED,
    CellState.NOT_APPLICABLE,
]
"""Of several seeds the state that stands first here is the square's."""


@dataclass(frozen=True)
class MatrixCell:
    """One attack against one defense: all its finished seeds together, or all while none is."""

    defense: str
    attack: str
    state: str
    reason: str
    """Why it has no figure; empty where it has one."""
    robust: Count | None
    """Right on the clean image and not broken, of all examples; in a cascade of those played."""
    out_of_ball: int | None
    """Offers that the referee refused."""
    fragile: int | None
    forwards: int | None
    gradients: int | None
    seconds: float
    """CPU seconds; of what is not finished, those so far."""
    items: int
    items_done: int
    detection: Detection | None = None
    """How the detector of a rejecting defense fared; None where there is no detector."""


def matrix(store: Store, board: Leaderboard) -> list[MatrixCell]:
    """Every attack that was planned or is required, against every defense, both by name.

    The attacks of a cascade stand in the order in which they came.
    """
    return matrix_cells(load_results(store, board))


def matrix_cells(played: LeaderboardResults) -> list[MatrixCell]:
    """The same from what was read already."""
    attacks = _attacks(played)
    return [
        matrix_cell(played, defense, attack) for defense in played.standings for attack in attacks
    ]


def _attacks(played: LeaderboardResults) -> list[str]:
    """By name; of a cascade each after those that came before it, and who met nobody last."""
    planned = {attack for _, attack in played.cells if attack != CLEAN}
    before = _before(played)
    left = sorted(planned | set(played.board.required), key=lambda name: (name not in before, name))
    if played.board.mode != "rank":
        return sorted(left)
    found: list[str] = []
    while left:
        # Of cascades that contradict each other, played in orders of different versions, the name.
        free = (name for name in left if not before.get(name, set()) & set(left))
        found.append(next(free, left[0]))
        left.remove(found[-1])
    return found


def _before(played: LeaderboardResults) -> dict[str, set[str]]:
    """By attack that has met a defense: who stood just before it in any cascade."""
    rows = [row for rows in played.cells.values() for row in rows if row.cell.attack != CLEAN]
    attacks, found = {row.key: row.cell.attack for row in rows}, dict[str, set[str]]()
    for row in rows:
        if row.cell.before or row.state == CellState.DONE:
            found.setdefault(row.cell.attack, set()).update(
                {attacks.get(row.cell.before, "")} - {row.cell.attack}
            )
    return found


def matrix_cell(played: LeaderboardResults, defense: str, attack: str) -> MatrixCell:
    """One of them."""
    rows = played.cells.get((defense, attack), ())
    done = [row for row in rows if row.state == CellState.DONE]
    told = done or rows
    telling = min(rows, key=lambda row: _SAYS_MOST.index(row.state), default=None)
    return MatrixCell(
        defense=defense,
        attack=attack,
        state=str(telling.state if telling else CellState.MISSING),
        reason=_reason(telling, played.stale.get((defense, attack), "")),
        robust=_robust(played.board, played.standings[defense], attack),
        out_of_ball=_sum(done, "out_of_ball"),
        fragile=_sum(done, "fragile"),
        forwards=_sum(done, "forwards"),
        gradients=_sum(done, "gradients"),
        seconds=sum(row.seconds for row in told),
        items=sum(row.cell.items for row in told),
        items_done=sum(row.items_done for row in told),
        detection=_detection(played.standings[defense], attack),
    )


def _detection(standing: DefenseResult, attack: str) -> Detection | None:
    bout = standing.bouts.get(attack)
    return None if bout is None else detection(standing.scores, bout.attacked)


def _reason(telling: CellRow | None, changed: str) -> str:
    if telling is None and changed:
        return f"Played with an older version of {changed}; run it again."
    if telling is None:
        return "Not planned; name the attack in `bench run --attack`."
    return "" if telling.state == CellState.DONE else telling.reason


def _robust(board: Leaderboard, standing: DefenseResult, attack: str) -> Count | None:
    bout: AttackResult | None = standing.bouts.get(attack)
    if bout is None:
        return None
    right = ~bout.broken & standing.clean if standing.cleaned else ~bout.broken
    among = bout.faced if board.mode == "rank" else np.ones_like(bout.faced)
    return count_interval(int((right & among).sum()), int(among.sum()))


def _sum(done: Sequence[CellRow], name: str) -> int | None:
    figures = [row.figures for row in done if row.figures is not None]
    return sum(getattr(one, name) for one in figures) if figures else None

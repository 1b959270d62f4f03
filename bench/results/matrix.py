"""The matrix: robust accuracy of every defense under every attack, and the state of open cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.core.cells import CLEAN, CellState
from bench.core.outcomes import Refusals
from bench.core.statistics import Count, count_interval
from bench.core.variant_names import variant_order
from bench.results.detection import Detection, detector_counts
from bench.results.example_results import (
    DefenseResult,
    LeaderboardResults,
    load_results,
)
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import uses_gradients
from bench.results.second_evaluations import SecondEvaluation
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
    """Why it has no figure, or that its figure is of an older version; else empty."""
    robust: Count | None
    """Right on the clean image and not broken, of the examples that the attack runs on; in a
    cascade of those evaluated."""
    out_of_ball: int | None
    """Items whose candidate lies outside the perturbation set."""
    fragile: int | None
    forwards: int | None
    gradients: int | None
    seconds: float
    """CPU seconds; so far, where the cell is not finished."""
    items: int
    items_done: int
    detection: Detection | None = None
    """The detector of a rejecting defense against this attack; None where there is no detector."""
    refusals: Refusals | None = None
    """Items whose candidate the referee refused, by reason."""
    true_gradient: int | None = None
    """Examples broken by the true gradient alone, where a BPDA approximation is declared; else
    None."""
    machines: tuple[str, ...] = ()
    """The machine classes that computed it; several where it was resumed on another machine."""
    second: tuple[SecondEvaluation, ...] = ()
    """What evaluating it again has shown."""
    keys: tuple[str, ...] = ()
    """The keys of the finished cells behind the figure, one for each seed, or until then of all."""


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
        planned | set(results.leaderboard.required),
        key=lambda name: (name not in before, variant_order(name)),
    )
    if results.leaderboard.mode == "full":
        return sorted(left, key=variant_order)
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
    found = results.defenses[defense].attacks.get(attack)
    done = [row for row in rows if row.state == CellState.DONE]
    counted = done or rows
    furthest = min(rows, key=lambda row: _BY_PROGRESS.index(row.state), default=None)
    return MatrixCell(
        defense=defense,
        attack=attack,
        state=str(furthest.state if furthest else CellState.MISSING),
        reason=_reason(results, furthest, (defense, attack)),
        robust=_robust(results.leaderboard, results.defenses[defense], attack),
        out_of_ball=None if found is None else found.refusals.norm,
        fragile=_sum(done, "fragile"),
        forwards=_sum(done, "forwards"),
        gradients=_sum(done, "gradients"),
        seconds=sum(row.seconds for row in counted),
        items=sum(row.cell.items for row in counted),
        items_done=sum(row.items_done for row in counted),
        detection=_detection(results.defenses[defense], attack),
        refusals=None if found is None else found.refusals,
        true_gradient=_by_true_gradient(results, defense, attack),
        machines=_machines(results, done),
        second=tuple(one for row in done for one in results.second.get(row.key, ())),
        keys=tuple(row.key for row in counted),
    )


def _by_true_gradient(results: LeaderboardResults, defense: str, attack: str) -> int | None:
    found = results.defenses[defense].attacks.get(attack)
    if found is None or not results.defense_cards[defense].bpda or not uses_gradients(found.card):
        return None
    return int((found.by_true_gradient & results.defenses[defense].clean).sum())


def _machines(results: LeaderboardResults, done: Sequence[CellRow]) -> tuple[str, ...]:
    known = {machine for row in done for machine in results.machines.get(row.key, ())}
    return tuple(machine.sentence for machine in sorted(known))


def _detection(result: DefenseResult, attack: str) -> Detection | None:
    found = result.attacks.get(attack)
    return None if found is None else detector_counts(result.clean_scores, found.scores)


def _reason(results: LeaderboardResults, furthest: CellRow | None, pair: tuple[str, str]) -> str:
    changed = results.outdated.get(pair, "")
    if furthest is None and changed:
        return f"Evaluated with an older version of {changed}; run it again."
    if furthest is None:
        return "Not planned; name the attack in `bench run --attack`."
    return results.older.get(pair, "") if furthest.state == CellState.DONE else furthest.reason


def _robust(leaderboard: Leaderboard, result: DefenseResult, attack: str) -> Count | None:
    found = result.attacks.get(attack)
    if found is None:
        return None
    robust = ~found.broken & result.clean if result.has_clean_pass else ~found.broken
    among = found.evaluated if leaderboard.mode != "full" else ~found.left_out
    return count_interval(int((robust & among).sum()), int(among.sum()))


def _sum(done: Sequence[CellRow], name: str) -> int | None:
    figures = [row.figures for row in done if row.figures is not None]
    return sum(getattr(one, name) for one in figures) if figures else None

"""The cells of a leaderboard, of every version, and why those that are not shown are outdated."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bench.core.cards import DefenseCard
from bench.core.cells import CLEAN, FEW_EXAMPLES, CellState
from bench.results.current_cells import CurrentDigests
from bench.results.leaderboards import Leaderboard, is_costly
from bench.results.row_versions import History
from bench.store import CellRow, Store


def leaderboard_cells(store: Store, leaderboard: Leaderboard) -> list[CellRow]:
    """All cells on a leaderboard's examples, also under other threat models, in a fixed order.

    Costly defenses have theirs on the first few examples.
    """
    own = store.cells(examples=leaderboard.examples)
    here = {row.cell.defense for row in own if row.cell.threat_id == leaderboard.id}
    costly = {card.name for card in store.cards(DefenseCard) if is_costly(card)} - here
    costly_rows = _rows_on_few_examples(store, leaderboard, costly) if costly else []
    listed = {row.cell.defense for row in costly_rows if row.cell.threat_id == leaderboard.id}
    kept = [row for row in own if row.cell.defense not in listed]
    rows = kept + [row for row in costly_rows if row.cell.defense in listed]
    return sorted(rows, key=_sort_key)


def _rows_on_few_examples(
    store: Store, leaderboard: Leaderboard, costly: Collection[str]
) -> list[CellRow]:
    """The cells of costly defenses on the first few examples of the leaderboard's data set."""
    rows = [row for row in store.cells() if row.cell.defense in costly]
    examples = {row.cell.examples: store.examples(row.cell.examples) for row in rows}
    few = {
        digest
        for digest, row in examples.items()
        if row.dataset == leaderboard.dataset
        and row.n == FEW_EXAMPLES < leaderboard.n
        and row.order == leaderboard.example_order
    }
    return [row for row in rows if row.cell.examples in few]


def _sort_key(row: CellRow) -> tuple[str, str, int, str, str]:
    return row.cell.defense, row.cell.attack, row.cell.seed, row.cell.numeric, row.key


def is_here(row: CellRow, leaderboard: Leaderboard) -> bool:
    """Whether a cell belongs to a leaderboard: a clean pass, or of its threat model and mode."""
    return row.cell.attack == CLEAN or (
        row.cell.threat_id == leaderboard.id and row.cell.mode == leaderboard.mode
    )


def newest_result(store: Store, leaderboard: Leaderboard) -> float | None:
    """Unix time of the newest finished cell of a leaderboard; None without one."""
    cells = store.cells(leaderboard.name, leaderboard.examples, leaderboard.mode)
    return max((row.updated for row in cells if row.state == CellState.DONE), default=None)


def outdated_cells(
    history: History, rows: Iterable[CellRow], shown: Collection[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """What has changed since a cell was evaluated, by (defense, attack) that is not shown.

    A cell that is itself current follows one in its cascade that is not.
    """
    digests = {name: card.digest for name, card in history.defenses.items()}
    now = CurrentDigests(digests, history.current)
    done = [row for row in rows if row.state == CellState.DONE]
    return {
        (row.cell.defense, row.cell.attack): now.change(row) or "an attack before it in the cascade"
        for row in sorted(done, key=lambda row: row.updated)
        if (row.cell.defense, row.cell.attack) not in shown
    }

"""Which examples each attack of the suite `fast` meets. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bench.core.audits import audit_order, audit_size
from bench.core.cards import CertifierCard
from bench.core.cells import FAST, Cell
from bench.core.outcomes import Outcomes, Verdict
from bench.store import CellRow, Store

NEAR_SHARE = 0.04
"""Share of the survivors that are nearest to falling and meet `standard` in any case."""


class FastStage(NamedTuple):
    """The survivors of the early stops, and which of them meet `standard`."""

    survivors: tuple[int, ...]
    near: tuple[int, ...]
    """Those with the largest loss, which `standard` meets in any case."""
    sample: tuple[int, ...]
    """The audit: a random sample of the others."""

    @property
    def others(self) -> tuple[int, ...]:
        """The survivors that `standard` has not met after the audit."""
        met = {*self.near, *self.sample}
        return tuple(item for item in self.survivors if item not in met)


def fast_stage(outcomes: Outcomes, n: int, *names: str) -> FastStage:
    """The parts of the survivors, from the outcomes of the attack with early stops.

    `n` is the number of examples. The order in which the audit draws is decided by the names
    alone, before any outcome is known.
    """
    left = outcomes.verdict != Verdict.BROKEN
    items, loss = outcomes.item[left], np.nan_to_num(outcomes.loss[left], nan=np.inf)
    by_loss = items[np.lexsort((items, -loss))]
    near = by_loss[: math.ceil(NEAR_SHARE * len(items))]
    others = {int(item) for item in items} - {int(item) for item in near}
    drawn = [int(item) for item in audit_order(n, *names) if int(item) in others]
    return FastStage(
        tuple(items.tolist()), tuple(sorted(near.tolist())),
        tuple(sorted(drawn[: audit_size(len(others), n)])),
    )  # fmt: skip


def stage_of(store: Store, first: CellRow) -> FastStage:
    """The parts of the survivors of a finished cell with early stops."""
    cell = first.cell
    names = (cell.threat_id, cell.defense_digest, cell.attack_digest, cell.examples)
    return fast_stage(store.outcomes(first.key), store.examples(cell.examples).n, *names)


def cells_before(store: Store, before: str) -> list[CellRow]:
    """The cells of a cascade up to the one with the key `before`, the first one first."""
    found: list[CellRow] = []
    while before:
        (row,) = store.cells(key=before)
        found.insert(0, row)
        before = row.cell.before
    return found


def certified_items(store: Store, threat_id: str, examples: str, digest: str) -> set[int]:
    """The examples that a built-in deterministic certifier has proved robust for a defense."""
    cards = {card.name: card for card in store.cards(CertifierCard)}
    found: set[int] = set()
    for row in store.certificates(threat_id, examples):
        card = cards.get(row.certifier)
        if card is None or card.origin != "built-in" or row.defense_digest != digest:
            continue
        if row.exact or not card.error:
            found |= {int(item) for item in np.flatnonzero(row.certified)}
    return found


def items_of_cell(store: Store, cell: Cell, count: int) -> list[int]:
    """The items of a cell of a cascade, in order; `count`: those of the same cell in full mode.

    In rank mode those that the cell before has left. In fast mode the first attack meets all that
    no deterministic certificate covers; the second cell of an attack those that the audit left out.
    """
    before = cell.before
    if not before and cell.mode != FAST:
        return list(range(count))
    if not before:
        proved = certified_items(store, cell.threat_id, cell.examples, cell.defense_digest)
        return [item for item in range(count) if item not in proved]
    if cell.mode != FAST:
        return store.outcomes(before).survivors()
    chain = cells_before(store, before)
    stage = stage_of(store, chain[0])
    again = any(row.cell.attack == cell.attack for row in chain)
    broken = {
        int(item)
        for row in chain[1:]
        for found in [store.outcomes(row.key)]
        for item in found.item[found.verdict == Verdict.BROKEN]
    }
    chosen: Sequence[int] = stage.others if again else sorted({*stage.near, *stage.sample})
    return [item for item in chosen if item not in broken]

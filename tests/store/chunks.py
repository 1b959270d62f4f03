"""Small chunks, a planned cell, and an owner on another host."""

from __future__ import annotations

from sqlalchemy import update

from bench.core.outcomes import Chunk, Outcomes
from bench.store import Lease, PlannedCell, Store
from bench.store.tables import CELLS
from tests.store.workers import keep_tiny_examples, tiny_cell, tiny_outcomes

AWAY = "17@another-host#12345"
"""An owner on another host, whose lease ends by the clock alone."""


def tiny_chunk(*items: int) -> Chunk:
    return Chunk(tiny_outcomes(list(items)), seconds=0.5)


def expire(store: Store, key: str) -> None:
    with store._engine.begin() as connection:
        connection.execute(update(CELLS).where(CELLS.c.key == key).values(lease_until=0.0))


def leased(store: Store, key: str, owner: str = AWAY) -> Lease:
    lease = store.lease(key, owner)
    assert lease is not None
    return lease


def planned(store: Store, items: int = 6) -> str:
    keep_tiny_examples(store)
    cell = tiny_cell(items=items)
    store.plan([PlannedCell(cell)])
    return cell.key


def same_bits(one: Outcomes, other: Outcomes) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in one._fields]
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)

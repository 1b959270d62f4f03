"""Plays one finished cell again and compares the outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.core.cells import CLEAN, CellState, Numeric
from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.launcher import chosen_device, load_registry
from bench.evaluation.plan import Selection
from bench.evaluation.worker import Worker
from bench.registry.registry import Registry
from bench.store import CellRow, Store


def reproduce(key: str, url: str | None, device: str, allow_unsandboxed: bool) -> Mapping[str, Any]:
    """Play one finished cell again, in memory, and compare every verdict."""
    with Store.open(url, read_only=True) as store:
        row = find_cell(store, key)
        kept = store.outcomes(row.key)
        count = store.examples(row.examples).n
    registry = load_registry(allow_unsandboxed, Selection((), (row.defense,), (row.attack,)))
    again = replay(registry, row, kept.item.tolist(), count, chosen_device(device))
    differ = kept.item[(kept.verdict != again.verdict)].tolist()
    name = f"{row.threat} · {row.attack} · {row.defense}"
    sentence = f"{name}: all {row.items} verdicts are the same."
    if differ:
        sentence = f"{name}: {len(differ)} of {row.items} verdicts differ, first item {differ[0]}."
    return {"cell": row.key, "same": not differ, "differ": differ, "sentence": sentence}


def find_cell(store: Store, key: str) -> CellRow:
    """The one finished cell whose key begins so."""
    rows = [row for row in store.cells() if row.key.startswith(key) and row.attack != CLEAN]
    rows = [row for row in rows if row.state is CellState.DONE]
    if len(rows) != 1:
        raise BenchError(
            f"{len(rows)} finished cells have a key that begins with {key!r}; give more of it, "
            "as `bench report --json` prints it."
        )
    return rows[0]


def replay(
    registry: Registry, row: CellRow, met: Sequence[int], count: int, device: torch.device
) -> Outcomes:
    """The outcomes of a cell, the items `met` of it, played from the plugins of today."""
    selection = Selection((row.threat,), (row.defense,), (row.attack,), count, row.seed, row.mode)
    (pair,) = plan.plan_pairs(registry, selection)
    with TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/again.db") as aside:
        hand = Worker(registry, aside, selection, RunSettings(device, numeric=Numeric(row.numeric)))
        arena, source = hand.builder.seats(pair)
        cell = arena.cell(pair.threat, pair.attack, row.mode, source)
        if row.before:
            cell = replace(cell, before=row.before, items=row.items)
        if cell.key != row.key:
            raise BenchError(
                f"{row.defense} or {row.attack} has changed since this cell was played: "
                f"its key would be {cell.key[:12]} now, it was {row.key[:12]}."
            )
        chunks = hand.chunks(pair, arena, source, met=met)
        return Outcomes.concatenate([chunk.outcomes for chunk in chunks])

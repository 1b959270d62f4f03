"""Evaluates a finished cell again and compares the outcomes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from bench.core.cells import CLEAN, Cell, CellState, Numeric
from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.launcher import chosen_device, load_registry
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.store import CellRow, Store


def reproduce(key: str, url: str | None, device: str, allow_unsandboxed: bool) -> Mapping[str, Any]:
    """Evaluate a finished cell again in memory and compare the verdict of every item.

    `key` is the beginning of the cell's key. Raises BenchError where it does not name one finished
    cell, or the cell's plugins have changed.
    """
    with Store.open(url, read_only=True) as store:
        row = find_cell(store, key)
        recorded = store.outcomes(row.key)
        count = store.examples(row.cell.examples).n
    cell = row.cell
    registry = load_registry(allow_unsandboxed, Selection((), (cell.defense,), (cell.attack,)))
    again = replay(registry, cell, recorded.item.tolist(), count, chosen_device(device))
    differ = recorded.item[(recorded.verdict != again.verdict)].tolist()
    sentence = _comparison(cell, differ)
    return {"cell": row.key, "same": not differ, "differ": differ, "sentence": sentence}


def _comparison(cell: Cell, differ: list[int]) -> str:
    name = f"{cell.threat} · {cell.attack} · {cell.defense}"
    if differ:
        return f"{name}: {len(differ)} of {cell.items} verdicts differ, first item {differ[0]}."
    return f"{name}: all {cell.items} verdicts are the same."


def find_cell(store: Store, key: str) -> CellRow:
    """The one finished cell whose key begins with `key`; raises BenchError if not exactly one."""
    rows = [row for row in store.cells() if row.key.startswith(key) and row.cell.attack != CLEAN]
    rows = [row for row in rows if row.state is CellState.DONE]
    if len(rows) != 1:
        raise BenchError(
            f"{len(rows)} finished cells have a key that begins with {key!r}; give more of it: "
            "the metadata of `bench export images` holds it."
        )
    return rows[0]


def replay(
    registry: Registry, cell: Cell, included: Collection[int], count: int, device: torch.device
) -> Outcomes:
    """The outcomes of a cell's items `included`, on `count` examples, with today's plugins.

    Raises BenchError where a plugin has changed, so that the cell's key would be another.
    """
    names = (cell.threat,), (cell.defense,), (cell.attack,)
    selection = Selection(*names, examples=count, seed=cell.seed, mode=cell.mode)
    (pair,) = plan.plan_pairs(registry, selection)
    settings = RunSettings(device, numeric=Numeric(cell.numeric))
    cache = DefenseCache(registry=registry, selection=selection, settings=settings)
    defense, surrogate = cache.defense(pair.defense, pair.threat), cache.surrogate(pair)
    today = defense.cell(pair.threat, pair.attack, cell.mode, surrogate)
    if cell.before:
        today = replace(today, before=cell.before, items=cell.items)
    if today.key != cell.key:
        raise BenchError(
            f"{cell.defense} or {cell.attack} has changed since this cell was evaluated: "
            f"its key would be {today.key[:12]} now, it was {cell.key[:12]}."
        )
    return CellPlayer().outcomes(pair, defense, surrogate, included=included)

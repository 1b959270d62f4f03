"""Evaluates a finished cell again, stores the outcomes beside the first, and compares both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from bench.core.cells import BALANCED_ORDER, FAST, Cell, Numeric
from bench.core.errors import BenchError, UnavailableError
from bench.core.machines import Machine
from bench.core.outcomes import Outcomes
from bench.core.replication import Difference, changed_otherwise, differences
from bench.engine.machine import this_machine
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.launcher import chosen_device, load_registry, set_deterministic
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.results.cell_report import find_cell
from bench.sandbox.deadline import CELL_DEADLINE
from bench.store import Store


def reproduce(key: str, url: str | None, device: str, allow_unsandboxed: bool) -> Mapping[str, Any]:
    """Evaluate a finished cell again and store the outcomes beside the first, which stay.

    `key` is the beginning of the cell's key. The result names the items whose verdicts differ and
    their margins. Raises BenchError where the key does not name one finished cell, or the cell's
    plugins have changed, and PluginError where a sandboxed one takes longer than a cell may.
    """
    set_deterministic()  # as `bench run` does: the number of threads may change a rounding
    where = chosen_device(device)
    with Store.open(url, read_only=True) as store:
        row = find_cell(store, key, finished=True)
        recorded = store.outcomes(row.key)
        machines = store.machines([row.key]).get(row.key, ())
        examples = store.examples(row.cell.examples)
        cell = row.cell
        registry = load_registry(allow_unsandboxed, Selection((), (cell.defense,), (cell.attack,)))
        included = recorded.item.tolist()
        with CELL_DEADLINE.cell():
            again = replay(
                registry, cell, included, examples.n, where, order=examples.order, store=store
            )
    found, machine = differences(recorded, again), this_machine(where)
    return {
        "cell": row.key,
        "same": not found,
        "differ": [one.item for one in found],
        "differences": [asdict(one) | {"sentence": one.sentence} for one in found],
        "changed_otherwise": changed_otherwise(recorded, again),
        "machine": machine.sentence,
        "recorded_on": [one.sentence for one in machines],
        "sentence": _comparison(cell, found, changed_otherwise(recorded, again)),
        "not_stored": _store_beside(url, row.key, machine, again),
    }


def _store_beside(url: str | None, key: str, machine: Machine, again: Outcomes) -> str:
    """Store a second evaluation; why that failed, or an empty string."""
    try:
        with Store.open(url) as store:
            store.insert_replication(key, machine, again)
    except UnavailableError as error:  # a published database may be read-only here
        return f"The second evaluation was not stored: {error}"
    return ""


def _comparison(cell: Cell, found: Sequence[Difference], changed: int) -> str:
    name = f"{cell.threat} · {cell.attack} · {cell.defense}"
    other = f" {changed} outcomes differ in another figure." if changed else ""
    if found:
        first = found[0].item
        return f"{name}: {len(found)} of {cell.items} verdicts differ, first item {first}.{other}"
    return f"{name}: all {cell.items} verdicts are the same.{other}"


def replay(
    registry: Registry,
    cell: Cell,
    included: Collection[int],
    count: int,
    device: torch.device,
    *,
    order: str = BALANCED_ORDER,
    store: Store | None = None,
) -> Outcomes:
    """The outcomes of a cell's items `included`, on the first `count` examples of an order.

    Attack and defense are today's plugins, trained weights those of `store` (None: of the cache
    folder).

    Raises BenchError where a plugin has changed, so that the cell's key would be another.
    """
    names = (cell.threat,), (cell.defense,), (cell.attack,)
    selection = Selection(*names, examples=count, seed=cell.seed, mode=cell.mode, order=order)
    (pair,) = plan.plan_pairs(registry, selection)
    settings = RunSettings(device, numeric=Numeric(cell.numeric))
    cache = DefenseCache(registry=registry, selection=selection, settings=settings, store=store)
    defense, surrogate = cache.defense(pair.defense, pair.threat), cache.surrogate(pair)
    today = defense.cell(pair.threat, pair.attack, cell.mode, surrogate)
    if cell.before or cell.mode == FAST:
        today = replace(today, before=cell.before, items=cell.items)
    if today.key != cell.key:
        raise BenchError(
            f"{cell.defense} or {cell.attack} has changed since this cell was evaluated: "
            f"its key would be {today.key[:12]} now, it was {cell.key[:12]}."
        )
    return CellPlayer().outcomes(pair, defense, surrogate, included=included)

"""The worker: what fails stays where it failed, and whoever waits goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import matrix
from bench.arena import Setting
from bench.matrix import Selection
from bench.records import CellState
from bench.registry import Registry
from bench.runner import Worker
from bench.store import CellRow, Planned, Store

SELECTION = Selection(("digits-linf",), ("linear",), ("random", "fgsm"), examples=32)
DONE, FAILED = CellState.DONE, CellState.FAILED


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path / "no submissions")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def hand(registry: Registry, store: Store, **changes: Any) -> Worker:
    setting = Setting(torch.device("cpu"), 32)
    return replace(Worker(registry, store, SELECTION, setting, certifiers="none"), **changes)


def rows(store: Store) -> dict[str, CellRow]:
    """By attack."""
    return {row.attack: row for row in store.cells()}


def test_a_worker_that_has_not_run_plays_a_single_cell(registry: Registry, store: Store) -> None:
    alone = hand(registry, store)
    pair = next(p for p in matrix.pairs(registry, SELECTION) if p.attack.name == "fgsm")
    arena, source = alone.builder.seats(pair)
    cell = arena.cell(pair.threat, pair.attack, "full", source)
    store.plan([Planned(cell)])
    alone._cell(cell, pair, arena, source)
    assert rows(store)["fgsm"].state is DONE

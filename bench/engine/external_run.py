"""Plays an attack that has a run of its own: closed sets in index order, guarded, judged alike.

The harness does not steer such a run; it hears every answer. The first verified success of a row is
kept with what it had cost by then; whoever has none is looked at once in the images returned.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, PluginError, error_text
from bench.engine.cell_spec import (
    NOISE_GROUP,
    Candidates,
    CellSpec,
    Confirm,
    concatenate,
    select_rows,
)
from bench.engine.external_model import (
    AttackStopped,
    ExternalLedger,
    ExternalModel,
    isolated_random_state,
)
from bench.engine.external_tracker import ExternalTracker
from bench.engine.ledger import QueryLedger
from bench.engine.problem import pad_rows, padded_size
from bench.plugin import ExternalAttack, PerturbationSet, Traits
from bench.threats.access import Budget
from bench.threats.random_numbers import KeyedRandomNumbers, example_key, name_to_int64


def run_external(
    game: CellSpec, attack: ExternalAttack, confirm: Confirm, items: Collection[int]
) -> Iterator[Candidates]:
    """Play every closed set that holds one of these items; each is handed on whole."""
    _prepared(attack)
    rows = Traits.of(attack).rows or len(game.x)
    size = max(rows, NOISE_GROUP)
    for first in range(0, len(game.x), size):
        block = range(first, min(first + size, len(game.x)))
        if not any(item in items for item in block):
            continue
        if game.noise is not None:
            game.noise.begin(first // size)
        whole = concatenate(list(_block(game, attack, confirm, block, rows)))
        asked = [row for row, item in enumerate(whole.item.tolist()) if item in items]
        part = select_rows(whole, torch.tensor(asked))
        yield select_rows(part, part.item.argsort())


def _block(
    game: CellSpec, attack: ExternalAttack, confirm: Confirm, block: range, rows: int
) -> Iterator[Candidates]:
    """One block of items, `rows` at a time; the goal is reached on some clean images already."""
    lost = game.reached_on_clean[block.start : block.stop].tolist()
    yield Candidates.of_clean_images(
        game, [item for item, gone in zip(block, lost, strict=True) if gone]
    )
    alive = [item for item, gone in zip(block, lost, strict=True) if not gone]
    for first in range(0, len(alive), rows):
        yield _set(game, attack, confirm, alive[first : first + rows], alone=rows == 1)


def _set(
    game: CellSpec, attack: ExternalAttack, confirm: Confirm, items: list[int], *, alone: bool
) -> Candidates:
    """One closed set: the run, and a look at what it returned."""
    count = len(items)
    where = torch.tensor(items, device=game.x.device)
    where = where if alone else pad_rows(where, padded_size(count))
    active = torch.arange(len(where), device=where.device) < count
    till = ExternalLedger(QueryLedger(len(where), game.budget, where.device), active)
    finds = ExternalTracker(game, confirm, where, till, watching=not Traits.of(attack).source)
    guard = ExternalModel(
        game.model_access, min(attack.needs, game.model_access.access), till,
        name=attack.name, shape=tuple(game.x.shape[1:]), on_answer=finds.observe,
    )  # fmt: skip
    problem = ExternalRows.of(game, attack.name, where, guard)
    try:
        seed = name_to_int64(f"{game.seed} {attack.name} {items[0]}")
        images = _guarded(attack.name, lambda: attack.run(problem), seed)
    except AttackStopped as stop:
        if till.running:
            raise PluginError(_forged(attack.name, stop)) from stop
        return finds.candidates(None)
    else:
        return finds.candidates(_like(images, game.x[where], attack.name))
    finally:
        till.running = False


@dataclass
class ExternalRows:
    """The problem of one run: its rows, and the guarded way to the defense."""

    x: Tensor
    y: Tensor
    target: Tensor
    ball: PerturbationSet
    classes: int
    budget: Budget
    model: ExternalModel
    draws: KeyedRandomNumbers

    @classmethod
    def of(cls, game: CellSpec, name: str, items: Tensor, guard: ExternalModel) -> ExternalRows:
        """Copies: what a library writes into them concerns it alone."""
        run = torch.zeros_like(items)
        draws = KeyedRandomNumbers(example_key(game.seed, name, items, run), run)
        return cls(
            game.x[items], game.y[items], game.target[items], game.ball, game.clean_logits.shape[1],
            game.budget, guard, draws,
        )  # fmt: skip

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] in [0, 1)."""
        return self.draws.uniform(name, shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape], standard normal."""
        return self.draws.normal(name, shape)

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] in [0, high)."""
        return self.draws.integers(name, high, shape)


def _prepared(attack: ExternalAttack) -> None:
    """Let it import what it needs, apart: an import may draw random numbers."""
    prepare = getattr(attack, "prepare", None)
    if prepare is not None:
        _guarded(attack.name, prepare, 0)


def _guarded(name: str, function: Callable[[], object], seed: int) -> object:
    """What it gives; whatever a library raises is the plugin's failure, in a sentence."""
    try:
        with isolated_random_state(seed):
            return function()
    except (BenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except PLUGIN_EXCEPTIONS as error:
        # A library may raise anything; the cell fails with its words, the matrix goes on.
        raise PluginError(f"{name} failed in its own run: {error_text(error)}.") from error


def _forged(name: str, stop: AttackStopped) -> str:
    """Who ended a run in the harness's name: the harness closes the till before it stops one."""
    last = traceback.extract_tb(stop.__traceback__)[-1]
    return (
        f"{name} was stopped by {Path(last.filename).name}, line {last.lineno}, though nothing was "
        "spent or won; Stopped is the harness's own, raise an error of another kind."
    )


def _like(images: object, x: Tensor, name: str) -> Tensor:
    """The images returned, if they are images like the clean ones."""
    if not isinstance(images, Tensor) or images.shape != x.shape or images.dtype != x.dtype:
        came = type(images).__name__
        if isinstance(images, Tensor):
            came = f"{images.dtype} {list(images.shape)}"
        raise PluginError(f"{name} returned {came}; {x.dtype} {list(x.shape)} is expected.")
    return images.detach().to(x.device, copy=True)

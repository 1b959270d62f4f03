"""Runs external attacks: batches in index order, counted queries, verified candidates.

An external attack has a `run` of its own. Every answer that it gets is checked for success: the
first confirmed success of a row is kept with its cost at that query. Rows without a success get a
final check of the image that the attack returns.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.core.batches import FRESH_ROWS
from bench.core.errors import PLUGIN_EXCEPTIONS, BenchError, PluginError, error_text
from bench.engine.cell_spec import (
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
from bench.engine.values import checked_points
from bench.plugin import ExternalAttack, PerturbationSet, Traits
from bench.plugin.external import Model
from bench.threats.access import Budget
from bench.threats.random_numbers import KeyedRandomNumbers, example_key, name_to_int64


def run_external(
    spec: CellSpec, attack: ExternalAttack, confirm: Confirm, items: Collection[int]
) -> Iterator[Candidates]:
    """Runs the attack on every batch that holds one of `items`; yields those items.

    A batch always runs whole, because its results may depend on all of its examples.
    """
    _prepare(attack)
    rows = Traits.of(attack).rows or len(spec.x)
    size = max(rows, FRESH_ROWS)
    if spec.noise is not None:  # whole noise groups, so that no group is begun by two blocks
        size = -(-size // spec.noise.rows) * spec.noise.rows
    for first in range(0, len(spec.x), size):
        block = range(first, min(first + size, len(spec.x)))
        if not any(item in items for item in block):
            continue
        if spec.noise is not None:
            spec.noise.begin(first // size)
        whole = concatenate(list(_run_block(spec, attack, confirm, block, rows)))
        wanted = [row for row, item in enumerate(whole.item.tolist()) if item in items]
        part = select_rows(whole, torch.tensor(wanted))
        yield select_rows(part, part.item.argsort())


def _run_block(
    spec: CellSpec, attack: ExternalAttack, confirm: Confirm, block: range, rows: int
) -> Iterator[Candidates]:
    """Runs one block of items, `rows` at a time; skips those broken on the clean image."""
    reached = spec.reached_on_clean[block.start : block.stop].tolist()
    yield Candidates.of_clean_images(
        spec, [item for item, done in zip(block, reached, strict=True) if done]
    )
    left = [item for item, done in zip(block, reached, strict=True) if not done]
    for first in range(0, len(left), rows):
        yield _run_batch(spec, attack, confirm, left[first : first + rows], alone=rows == 1)


def _run_batch(
    spec: CellSpec, attack: ExternalAttack, confirm: Confirm, items: list[int], *, alone: bool
) -> Candidates:
    """Runs the attack on one batch, with a final check of the images that it returns.

    With `alone` the batch is one row, which may query several images at once.
    """
    count = len(items)
    where = torch.tensor(items, device=spec.x.device)
    where = where if alone else pad_rows(where, padded_size(count))
    active = torch.arange(len(where), device=where.device) < count
    ledger = ExternalLedger(QueryLedger(len(where), spec.budget, where.device), active)
    access = min(attack.needs, spec.model_access.access)
    tracker = ExternalTracker(
        spec, confirm, where, ledger,
        tracks=not Traits.of(attack).source, draws=spec.model_access.draws_at(access),
    )  # fmt: skip
    model = ExternalModel(
        spec.model_access, access, ledger,
        name=attack.name, shape=tuple(spec.x.shape[1:]), on_answer=tracker.observe,
    )  # fmt: skip
    seed = name_to_int64(f"{spec.seed} {attack.name} {items[0]}")
    problem = ExternalRows.of(spec, attack.name, where, model, seed)
    try:
        images = _isolated(attack.name, lambda: attack.run(problem), seed)
    except AttackStopped as stop:
        if ledger.running:
            raise PluginError(_foreign_stop(attack.name, stop)) from stop
        return tracker.candidates(None)
    else:
        given = checked_points(images, spec.x[where], f"{attack.name}.run returned")
        return tracker.candidates(given.detach().clone())
    finally:
        ledger.running = False


@dataclass
class ExternalRows:
    """The ExternalProblem of `bench.plugin` over one batch of n rows."""

    x: Tensor
    y: Tensor
    target: Tensor
    ball: PerturbationSet
    classes: int
    budget: Budget
    model: Model
    draws: KeyedRandomNumbers
    seed: int = 0
    """Seed of the global random generators, for an attack that runs in another process."""

    @classmethod
    def of(
        cls, spec: CellSpec, name: str, items: Tensor, model: ExternalModel, seed: int
    ) -> ExternalRows:
        """The rows of `items` [n] int64, as copies that a library may write into."""
        zero = torch.zeros_like(items)
        draws = KeyedRandomNumbers(example_key(spec.seed, name, items, zero), zero)
        return cls(
            spec.x[items], spec.y[items], spec.target[items], spec.ball, spec.clean_logits.shape[1],
            spec.budget, model, draws, seed,
        )  # fmt: skip

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform keyed random numbers [n, *shape] in [0, 1)."""
        return self.draws.uniform(name, shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal keyed random numbers [n, *shape]."""
        return self.draws.normal(name, shape)

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Keyed random integers [n, *shape] in [0, high)."""
        return self.draws.integers(name, high, shape)


def _prepare(attack: ExternalAttack) -> None:
    """Calls the attack's `prepare`, apart from its run: an import may draw random numbers."""
    prepare = getattr(attack, "prepare", None)
    if prepare is not None:
        _isolated(attack.name, prepare, 0)


def _isolated(name: str, function: Callable[[], object], seed: int) -> object:
    """Calls a function in an isolated random state; its exceptions become a PluginError."""
    try:
        with isolated_random_state(seed):
            return function()
    except (BenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except PLUGIN_EXCEPTIONS as error:
        # A library may raise anything; the cell fails with its message and other cells go on.
        raise PluginError(f"{name} failed in its own run: {error_text(error)}.") from error


def _foreign_stop(name: str, stop: AttackStopped) -> str:
    """Error message for an AttackStopped that the ledger has not raised."""
    last = traceback.extract_tb(stop.__traceback__)[-1]
    return (
        f"{name} was stopped by {Path(last.filename).name}, line {last.lineno}, although neither "
        "its budget was spent nor every row broken; only the engine may raise AttackStopped."
    )

"""Parallel restarts: slots that would stay empty begin later restarts of the same items early.

The outcome, image and cost of an item are those of running its restarts one after another: its
first restart that succeeds counts, whatever later restarts have done in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bench.engine.cell_spec import Candidates, CellSpec, Confirm, concatenate
from bench.engine.device_scheduler import scheduler_for
from bench.engine.problem import checked_restart_count
from bench.engine.transfers import to_device
from bench.threats.access import Budget

MAX_RESTART_PIXELS = 2**26  # in all restarts of all items: the memory laid out at once


def run_items(spec: CellSpec, confirm: Confirm, items: Sequence[int]) -> Iterator[Candidates]:
    """Runs these items; their restarts in parallel where slots would stay empty, else in turn."""
    restarts = checked_restart_count(spec.attack, spec.clean_logits.shape[1])
    size = len(items) * restarts * spec.x[:1].numel()
    if (
        restarts == 1
        or not items
        or len(items) >= spec.slots
        or size > MAX_RESTART_PIXELS
        or not restarts_are_independent(spec)
    ):
        yield from scheduler_for(spec, confirm, items).run()
        return
    reached = set(spec.reached_on_clean.nonzero()[:, 0].tolist())
    yield from scheduler_for(spec, confirm, [item for item in items if item in reached]).run()
    left = [item for item in items if item not in reached]
    yield from run_restarts_in_parallel(spec, confirm, left, restarts)


def restarts_are_independent(spec: CellSpec) -> bool:
    """Whether a restart depends on nothing that an earlier restart of its item has done."""
    return spec.noise is None and spec.budget == Budget() and spec.goal.kind != "nearest"


def run_restarts_in_parallel(
    spec: CellSpec, confirm: Confirm, items: Sequence[int], restarts: int
) -> Iterator[Candidates]:
    """Runs each restart of each item as an item; all first restarts begin before any second."""
    if not items:
        return
    example = torch.tensor(items, device=spec.x.device).repeat_interleave(restarts)
    restart = torch.arange(restarts, device=spec.x.device).repeat(len(items))
    expanded = replace(
        spec, x=spec.x[example], y=spec.y[example], target=spec.target[example],
        clean_logits=spec.clean_logits[example],
        reached_on_clean=spec.reached_on_clean[example], example=example, restart=restart,
    )  # fmt: skip

    def confirm_restart(rows: Tensor, images: Tensor) -> Tensor:
        """[k] bool: confirms images [k, C, H, W] of the restarts `rows` [k]."""
        return confirm(example[rows.to(example.device)], images)

    order = restart.argsort(stable=True).tolist()
    results = RestartResults.empty(expanded, len(items), restarts)
    for part in scheduler_for(expanded, confirm_restart, order).run():
        results = results.with_candidates(part)
        yield from results.completed(items)


class RestartResults(NamedTuple):
    """The candidates of the finished restarts of some items."""

    row: Tensor
    """[items, restarts] int64: row of each restart in `candidates`; -1 before it has finished."""
    yielded: Tensor
    """[items] bool: the item has been yielded."""
    candidates: Candidates
    """One row for each finished restart."""

    @classmethod
    def empty(cls, expanded: CellSpec, items: int, restarts: int) -> RestartResults:
        """The results before any restart has finished."""
        row = torch.full((items, restarts), -1)
        none = Candidates.of_clean_images(expanded, [])
        return cls(row, torch.zeros(items, dtype=torch.bool), none)

    def with_candidates(self, part: Candidates) -> RestartResults:
        """The results with the candidates of more restarts."""
        candidates = concatenate([self.candidates, part])
        row = self.row.clone()
        row.view(-1)[candidates.item] = torch.arange(len(candidates.item))
        return self._replace(row=row, candidates=candidates)

    def completed(self, items: Sequence[int]) -> Iterator[Candidates]:
        """Yields the items whose first successful, or last, restart and all before it are done."""
        restarts = self.row.shape[1]
        done = self.row >= 0
        won = done & (self.candidates.step[self.row.clamp_min(0)] >= 0)
        last = torch.where(won.any(1), won.int().argmax(1), restarts - 1)
        counted = torch.arange(restarts) <= last[:, None]
        ready = (done | ~counted).all(1) & ~self.yielded
        if ready.any():
            self.yielded.logical_or_(ready)
            chosen = ready.nonzero()[:, 0]
            yield self._combined(items, chosen, last[chosen], counted[chosen], won[chosen].any(1))

    def _combined(
        self, items: Sequence[int], chosen: Tensor, last: Tensor, counted: Tensor, won: Tensor
    ) -> Candidates:
        """One candidate for each chosen item, with the cost of the counted restarts."""
        found, row = self.candidates, self.row[chosen].clamp_min(0)
        end = row.gather(1, last[:, None])[:, 0]
        distance = found.distance[row].masked_fill(~counted, torch.inf)
        nearest = row.gather(1, distance.argmin(1, keepdim=True))[:, 0]
        shown = torch.where(won | distance.isinf().all(1), end, nearest)
        return Candidates(
            item=torch.tensor(items)[chosen],
            image=found.image[to_device(shown, found.image.device)],
            forwards=(found.forwards[row] * counted).sum(1),
            gradients=(found.gradients[row] * counted).sum(1),
            final_checks=found.final_checks[end], step=found.step[end],
            restart=found.restart[end], distance=found.distance[shown],
        )  # fmt: skip

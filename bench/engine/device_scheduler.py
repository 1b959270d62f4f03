"""The scheduler on a device: steps are queued without a wait, and settled with one every few steps.

A CUDA device works through a queue of operations. The host waits for it where it reads a value, so
it reads everything that it must know at once; the results are those of `Scheduler`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.engine.cell_spec import CellSpec, Confirm
from bench.engine.deferred_settlement import DeferredSettlement, can_defer
from bench.engine.problem import BATCH_UNIT, padded_size, points_of
from bench.engine.scheduler import SETTLE_STEPS, Scheduler
from bench.engine.slots import HostArray


def scheduler_for(spec: CellSpec, confirm: Confirm, items: Sequence[int]) -> Scheduler:
    """The scheduler for these items of a cell."""
    kind = DeviceScheduler if can_defer(spec) else Scheduler
    return kind(spec, confirm, items)


class DeviceScheduler(Scheduler):
    """The scheduler of a cell for which `can_defer` holds.

    Its first settlement after SETTLE_STEPS steps is the only wait of these steps. A restart that
    has made its last step leaves its slot before.
    """

    def _allocate(self) -> None:
        super()._allocate()
        self.deferred = DeferredSettlement(self.spec, self.confirm, self.slots, self.tracker)
        self.unsettled_steps = 0
        self.layout: tuple[HostArray, Tensor] | None = None

    def _waiting(self) -> bool:
        return bool(self.deferred.pending)

    def _batch_for(self, count: int) -> int:
        """The least of the batch and its halves with `count` rows, in whole units.

        Few sizes, because a CUDA graph is recorded for each, and a small batch costs no less.
        """
        size = len(self.slots)
        while size > BATCH_UNIT and padded_size(size // 2) >= count:
            size = padded_size(size // 2)
        return size

    def _steps_until_settlement(self) -> int:
        return min(super()._steps_until_settlement(), SETTLE_STEPS - self.unsettled_steps)

    def _step(self) -> None:
        super()._step()
        self.unsettled_steps += 1

    def _advance_speculatively(self, rows: int) -> None:
        """Makes several batches of `rows` speculative queries before the next settlement."""
        problem, where = self.problem, self._occupied()
        for _ in range(SETTLE_STEPS):
            searching = problem.active & ~self.tracker.found
            made = self.speculative.advance(problem, self.state, where, rows, searching=searching)
            self.spec.heartbeat()
            problem.ledger.forwards.index_add_(0, where, made.steps)
            if self.tracks:
                images = problem.points.index_copy(0, where, made.images)
                none = made.logits.new_zeros(len(images), made.logits.shape[1])
                charged = torch.zeros_like(searching).index_copy(0, where, made.steps > 0)
                last_step = problem.t.index_add(0, where, made.steps - 1)
                logits = none.index_copy(0, where, made.logits)
                self.tracker.observe(images, logits, charged, last_step)
            problem.t = problem.t.index_add(0, where, made.steps)
            self.state = made.state
        self.unsettled_steps = SETTLE_STEPS

    def _occupied(self) -> Tensor:
        """The occupied slots [m] int64 on the device; the same tensor while they stay the same."""
        slots = np.flatnonzero(self.slots.occupied)
        if self.layout is None or not np.array_equal(self.layout[0], slots):
            self.layout = slots, self.slots.on_device(slots)
        return self.layout[1]

    def _settle(self) -> None:
        """Settles every SETTLE_STEPS steps, and where no step can be made without it."""
        self._end_restarts_by_count()
        if self.unsettled_steps < SETTLE_STEPS and self._unfinished():
            return
        also = torch.cat([self.problem.t, self.speculative.unrecorded])
        finished, values = self.deferred.settle(also)
        self.unsettled_steps = 0
        self._take_counts(values)
        for candidates in finished:
            self._finish(candidates, self.slots.holding(candidates.item))
        self._end_restarts_by_count()

    def _take_counts(self, values: Tensor) -> None:
        """Takes over, from values [n + 2], the steps of the slots and the changes of rows."""
        steps, changes = values[:-2].numpy(), values[-2:].tolist()
        self.slots.step[:] = np.where(self.slots.occupied, steps, 0)
        if changes[1]:
            self.speculative.record(*changes)
            self.speculative.unrecorded = torch.zeros_like(self.speculative.unrecorded)

    def _end_restarts_by_count(self) -> None:
        """Passes on the restarts that have made their last step; begins their next restarts."""
        slots = self.slots
        over = np.flatnonzero(slots.occupied & (slots.step >= self.attack.steps))
        if not len(over):
            return
        final = slots.restart[over] + 1 >= self.restarts
        self.deferred.end(over, final, points_of(self.state))
        again = over[~final]
        slots.clear(over[final])
        self._begin(again, slots.item[again], slots.restart[again] + 1)

    def _discard_pending(self, items: Tensor) -> None:
        self.deferred.discard(items)

"""The scheduler: fills slots with items, steps the attack, retires items, shrinks the batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.core.batches import noise_batch
from bench.engine.attack_view import started, stepped
from bench.engine.batch_size import rounded_size, smallest_exact_batch
from bench.engine.cell_spec import (
    Candidates,
    CellSpec,
    Confirm,
    EndedRestarts,
    concatenate,
    select_rows,
)
from bench.engine.final_check import FinalCheck
from bench.engine.problem import (
    BatchProblem,
    checked_restart_count,
    map_state,
    pad_rows,
    padded_size,
    points_of,
)
from bench.engine.slots import HostArray, SlotArray, slot_indices
from bench.engine.speculative import SpeculativeQueries
from bench.engine.success_tracker import SuccessTracker
from bench.engine.values import checked_column
from bench.plugin import StopRule, Traits
from bench.threats.norms import per_row

SETTLE_STEPS = 4  # steps between settlements; a success is recorded at its query, so none is lost
SETTLE_EARLY = 16  # a settlement is due once this many slots, and one in so many, have finished
SHRINK_SHARE = 0.9  # the batch shrinks once at most this share of its slots is needed
CHUNK_ITEMS = 64  # finished items in one chunk of candidates
CHUNK_SECONDS = 5.0  # a smaller chunk is yielded after so long


class Scheduler:
    """Runs an attack on a queue of items in a fixed number of slots.

    A free slot takes the next item of the queue. Every few steps a settlement retires items whose
    success is confirmed, passes ended restarts to the final check and begins their next restarts.

    Args:
        spec: the cell.
        confirm: the referee's rule; a success is retired only where it agrees.
        items: item numbers, in the order in which they take slots.
    """

    def __init__(self, spec: CellSpec, confirm: Confirm, items: Sequence[int]) -> None:
        self.spec, self.confirm = spec, confirm
        self.attack, self.traits = spec.attack, Traits.of(spec.attack)
        every = torch.arange(len(spec.x), device=spec.x.device)
        self.example = every if spec.example is None else spec.example
        own = spec.restart
        self.first_restart = np.zeros(len(every), np.int64) if own is None else own.cpu().numpy()
        # Where each restart is an item of its own, an item has one restart.
        classes = spec.clean_logits.shape[1]
        self.restarts = checked_restart_count(spec.attack, classes) if own is None else 1
        self.final_check = FinalCheck(spec, confirm)
        self.speculative = SpeculativeQueries(spec)
        self.output = ChunkBuffer()
        reached = set(spec.reached_on_clean.nonzero()[:, 0].tolist())
        self.queue = [item for item in items if item not in reached][::-1]
        self.reached_on_clean = [item for item in items if item in reached]
        # All rows of a noise group share one random state, so its batch shrinks in fixed steps.
        self.grouped = spec.noise is not None
        # Reading a tensor costs nothing on the CPU; elsewhere the host would wait for the device.
        self.on_cpu = spec.x.device.type == "cpu"
        self.recently_converged = 0

    def run(self) -> Iterator[Candidates]:
        """Yields the candidates of every item, in chunks."""
        yield from self._clean_candidates()
        if self.queue:
            self._allocate()
            while self._unfinished() or self._waiting():
                self._admit()
                self._shrink()
                self._advance()
                self._settle()
                if not self.grouped and self.output.due:
                    yield self.output.take()
        if self.output.parts:
            yield self.output.take()

    def _clean_candidates(self) -> Iterator[Candidates]:
        """Yields the items whose goal is reached on the clean image, in full chunks.

        Those that are left over wait for the first chunk of the others.
        """
        clean = self.reached_on_clean
        for first in range(0, len(clean), CHUNK_ITEMS):
            self.output.add(
                Candidates.of_clean_images(self.spec, clean[first : first + CHUNK_ITEMS])
            )
            if not self.grouped and first + CHUNK_ITEMS < len(clean):
                yield self.output.take()

    def _allocate(self) -> None:
        """Allocates the slots and fills them; empty ones repeat the data of the last item."""
        spec, device = self.spec, self.spec.x.device
        size = min(padded_size(spec.slots), padded_size(len(self.queue)))
        if spec.noise is not None:
            size = min(spec.noise.rows, noise_batch(len(self.queue)))
        taken = [self.queue.pop() for _ in range(min(size, len(self.queue)))]
        item = np.array(taken, dtype=np.int64)
        rows = pad_rows(torch.tensor(taken, device=device), size)
        self.problem = problem = self._problem(rows)
        self.slots = SlotArray(problem)
        self.tracker = tracker = SuccessTracker(spec, self.slots)
        # A transfer attack must not learn from the target whether it has succeeded.
        self.tracks = not self.traits.source
        if self.tracks:
            problem.on_query = lambda adv, logits, charged: tracker.observe(
                adv, logits, charged, problem.t
            )
        self.slots.begin(np.arange(len(taken)), item, self.first_restart[item])
        self.state = started(self.attack, problem.at_start(torch.arange(size, device=device)))

    def _problem(self, item: Tensor) -> BatchProblem:
        """The Problem of these items [n], one a slot."""
        spec = self.spec
        return BatchProblem(
            spec.model_access, spec.ball, spec.goal, spec.x[item], spec.y[item],
            target=spec.target[item], clean_logits=spec.clean_logits[item],
            example=self.example[item], seed=spec.seed, name=self.attack.name, budget=spec.budget,
        )  # fmt: skip

    def _unfinished(self) -> bool:
        return bool(self.queue) or bool(self.slots.occupied.any())

    def _waiting(self) -> bool:
        """Whether ended restarts wait for their final check."""
        return bool(self.final_check.pending)

    def _admit(self) -> None:
        """Fills empty slots with the next items of the queue."""
        slots = self.slots.empty(len(self.queue))
        if len(slots):
            item = np.array([self.queue.pop() for _ in slots])
            self._load(self.slots.on_device(slots), self.slots.on_device(item))
            self._begin(slots, item, self.first_restart[item])

    def _load(self, where: Tensor, item: Tensor) -> None:
        """Loads the data of new items [k] into the slots `where` [k], with nothing spent."""
        problem, spec = self.problem, self.spec
        problem.x[where], problem.y[where] = spec.x[item], spec.y[item]
        problem.target[where], problem.clean[where] = spec.target[item], spec.clean_logits[item]
        problem.example[where] = self.example[item]
        problem.ledger.reset(where)
        self.tracker.forget(where)

    def _begin(self, slots: HostArray, item: HostArray, restart: HostArray) -> None:
        """Begins a restart in these slots and starts the attack there."""
        if not len(slots):
            return
        self.speculative.reset()
        self.slots.begin(slots, item, restart)
        where = self.slots.on_device(slots)
        padded = pad_rows(where, padded_size(len(slots)))
        fresh = started(self.attack, self.problem.at_start(padded))
        # Out of place, because fields of a state may share their memory.
        self.state = map_state(
            lambda old, new: old.index_copy(0, where, new[: len(slots)].to(old.dtype)),
            self.state,
            fresh,
        )

    def _shrink(self) -> None:
        """Drops slots that no item will take: the last items run in ever smaller batches."""
        if self.queue:
            return
        size = self._batch_for(self.slots.count)
        if size > SHRINK_SHARE * len(self.slots):
            return
        empty_last = np.argsort(~self.slots.occupied, kind="stable")
        where = self.slots.keep(np.sort(empty_last[:size]))
        self.tracker.keep(where)
        self.speculative.reset()
        self.state = map_state(lambda field: field[where], self.state)

    def _batch_for(self, count: int) -> int:
        """The smallest batch in which `count` slots get the same bits."""
        if self.grouped:
            return rounded_size(count)
        images, steps = self.problem.images(points_of(self.state)), self._steps_left()
        return smallest_exact_batch(self.spec.model_access, images, count, steps)

    def _steps_left(self) -> int:
        """An upper bound on the steps that any slot may still make."""
        occupied, steps = self.slots.occupied, self.attack.steps
        restarts = (self.restarts - 1 - self.slots.restart[occupied]).max(initial=0)
        return int(restarts * steps + (steps - self.slots.step[occupied]).max(initial=0))

    def _advance(self) -> None:
        """Makes steps until a settlement is due."""
        self.tracker.recent = self.recently_converged = 0
        rows = self.speculative.batch_rows(self.slots.count, len(self.slots))
        if rows:
            self._advance_speculatively(rows)
            return
        before = self.state
        for _ in range(self._steps_until_settlement()):
            before = self.state
            self._step()
            finished = self.tracker.recent + self.recently_converged
            if finished >= max(SETTLE_EARLY, len(self.slots) // SETTLE_EARLY):
                return
        self.speculative.record_step(before, self.state, self.problem.active)

    def _steps_until_settlement(self) -> int:
        """Steps until the next settlement; no slot passes its last step."""
        left = int(self.attack.steps - self.slots.step[self.slots.occupied].max(initial=0))
        return min(left, 1 if self.problem.ledger.limited else SETTLE_STEPS)

    def _step(self) -> None:
        """Makes one step in every slot."""
        active, limited = self.problem.active, self.problem.ledger.limited
        # An attack may write into the state that it gets.
        before = points_of(self.state).clone() if limited else points_of(self.state)
        self.state = stepped(self.attack, self.problem, self.state)
        self.spec.heartbeat()
        if limited:
            # An iterate computed from refused queries does not count.
            self.slots.converge(self.problem.ledger.refused & active, before)
        self.slots.tick()
        if self.traits.stop_rule is StopRule.CONVERGENCE:
            done = self.attack.done(self.state)  # type: ignore[attr-defined]
            converged = active & checked_column(
                done, len(active), f"{self.attack.name}.done returned"
            )
            if not self.on_cpu or converged.any():
                self.slots.converge(converged, points_of(self.state))
                if self.on_cpu and not self.grouped:
                    self.recently_converged += int(converged.sum())

    def _advance_speculatively(self, rows: int) -> None:
        """Makes several steps of each slot with one batch of `rows` speculative queries."""
        problem, tracker = self.problem, self.tracker
        searching = problem.active & ~tracker.found
        where = searching.nonzero()[:, 0]
        made = self.speculative.advance(problem, self.state, where, rows)
        self.spec.heartbeat()
        problem.ledger.forwards.index_add_(0, where, made.steps)
        if self.tracks and (not self.on_cpu or made.success.any()):
            images = problem.points.index_copy(0, where, made.images)
            none = made.logits.new_zeros(len(images), made.logits.shape[1])
            logits = none.index_copy(0, where, made.logits)
            last_step = problem.t.index_add(0, where, made.steps - 1)
            tracker.observe(images, logits, searching, last_step)
        self.slots.advance(where, made.steps)
        self.state = made.state

    def _settle(self) -> None:
        """Retires confirmed successes, ends restarts, and runs the final check where it is due."""
        slots, tracker = self.slots, self.tracker
        if self.on_cpu and self._nothing_to_settle():
            return
        occupied = slots.device_occupied
        over = slots.on_device(slots.step >= self.attack.steps)
        over = occupied & (over | slots.converged | self.problem.ledger.refused)
        never = self.traits.stop_rule is StopRule.NEVER
        won = tracker.confirmed(tracker.found & (over if never else occupied), self.confirm)
        self._end_restarts(slot_indices(over & ~won))
        winners = slot_indices(won)
        # The last iterate of an earlier restart may have succeeded before this one did.
        if len(winners) and self.final_check.contains_any(torch.from_numpy(slots.item[winners])):
            self._check_pending()
        self._retire(winners[slots.occupied[winners]])
        if self.final_check.full or self.traits.minimises or not self._unfinished():
            self._check_pending()

    def _nothing_to_settle(self) -> bool:
        """Whether no slot has a success, has converged, was refused or has made its last step."""
        slots, occupied = self.slots, self.slots.occupied
        if not occupied.any() or (occupied & (slots.step >= self.attack.steps)).any():
            return False
        changed = self.tracker.found | slots.converged | self.problem.ledger.refused
        return not (changed & slots.device_occupied).any()

    def _end_restarts(self, slots: HostArray) -> None:
        """Passes the last iterates of these slots to the final check; begins their next restart."""
        if not len(slots):
            return
        ended = self._ended_restarts(slots)
        self.final_check.pending.append(ended)
        final = ended.final.numpy()
        again = slots[~final]
        self.slots.clear(slots[final])
        self._begin(again, self.slots.item[again], self.slots.restart[again] + 1)

    def _ended_restarts(self, slots: HostArray) -> EndedRestarts:
        """The ended restarts of these slots, with their last iterate and nearest success."""
        array, tracker, ledger = self.slots, self.tracker, self.problem.ledger
        where = array.on_device(slots)
        early = array.converged[where]
        image = torch.where(
            per_row(early, array.last_image), array.last_image[where], points_of(self.state)[where]
        )
        step = torch.where(early, array.last_step[where], self.problem.t[where])
        spent = (ledger.forwards, ledger.gradients, tracker.step, tracker.restart)
        counts = torch.stack([step, *(fact[where] for fact in spent)]).cpu()
        step, forwards, gradients, nearest_step, nearest_restart = counts.unbind(0)
        item, restart = array.item[slots], array.restart[slots]
        final = (restart + 1 >= self.restarts) | ledger.refused[where].cpu().numpy()
        return EndedRestarts(
            item=torch.from_numpy(item), restart=torch.from_numpy(restart),
            final=torch.from_numpy(final), image=image,
            forwards=forwards, gradients=gradients, step=step,
            nearest_image=tracker.image[where],
            nearest_distance=tracker.distance[where].double().cpu(),
            nearest_step=nearest_step, nearest_restart=nearest_restart,
        )  # fmt: skip

    def _check_pending(self) -> None:
        """Runs the final check on the ended restarts that wait for it."""
        if not self.final_check.pending:
            return
        finished, nearer, nearest = self.final_check.run()
        if len(finished.item):
            self._finish(finished, self.slots.holding(finished.item))
        if len(nearer):
            self.tracker.set_nearest(self.slots.holding_each(nearer), nearest)

    def _retire(self, slots: HostArray) -> None:
        """Retires items whose success at one of their own queries is confirmed."""
        if len(slots):
            self._finish(self.tracker.candidates(slots), slots)

    def _finish(self, candidates: Candidates, slots: HostArray) -> None:
        """Passes on the candidates of finished items and clears their slots."""
        self.output.add(candidates)
        self.slots.clear(slots)
        self._cancel_later_restarts(candidates)

    def _cancel_later_restarts(self, candidates: Candidates) -> None:
        """Cancels the later restarts of broken examples where each restart is an item."""
        if self.spec.restart is None:
            return
        late = set[int]()
        for item in candidates.item[candidates.step >= 0].tolist():
            end = item + 1
            while (
                end < len(self.first_restart) and self.first_restart[end] > self.first_restart[item]
            ):
                end += 1
            late |= set(range(item + 1, end))
        self.queue = [item for item in self.queue if item not in late]
        cancelled = torch.tensor(sorted(late), dtype=torch.int64)
        self._discard_pending(cancelled)
        self.slots.clear(self.slots.holding(cancelled))

    def _discard_pending(self, items: Tensor) -> None:
        """Removes ended restarts of these items [k] that wait for their final check."""
        self.final_check.discard(items)


class ChunkBuffer:
    """Collects the candidates of finished items and returns them in chunks."""

    def __init__(self) -> None:
        self.parts, self.items = list[Candidates](), 0
        self.since = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether a chunk is full, or old enough, to be yielded."""
        if not self.parts:
            return False
        return self.items >= CHUNK_ITEMS or time.monotonic() - self.since > CHUNK_SECONDS

    def add(self, part: Candidates) -> None:
        """Adds the candidates of finished items."""
        self.parts.append(part)
        self.items += len(part.item)

    def take(self) -> Candidates:
        """The collected candidates in item order; the buffer is empty afterwards."""
        whole = concatenate(self.parts)
        self.parts, self.items, self.since = [], 0, time.monotonic()
        return select_rows(whole, whole.item.argsort())

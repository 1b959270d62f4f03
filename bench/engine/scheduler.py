"""The slots of one queue of items, and how rows come, play and go."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.engine.batch_size import rounded_size, smallest_exact_batch
from bench.engine.cell_spec import (
    NOISE_GROUP,
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
    images_of,
    map_state,
    pad_rows,
    padded_size,
    checked_restart_count,
)
from bench.engine.slots import Places, Slots, numbers
from bench.engine.speculative import SpeculativeQueries
from bench.plugin import StopRule, Traits
from bench.threats.norms import per_row

STRIDE = 4  # steps between settlements: hits are recorded at the query, so none is lost
CROWD = 16  # so many rows, and one slot in so many, have won since: the settlement does not wait
SPARE = 0.9  # of the slots: when the tail needs no more, the others are given up
CHUNK = 64  # finished items handed on at once
SECONDS = 5.0  # or whatever is finished after so long


class Scheduler:
    """Plays one queue. The host keeps a mirror of who sits where; the rest stays on the device."""

    def __init__(self, game: CellSpec, confirm: Confirm, items: Sequence[int]) -> None:
        self.game, self.confirm = game, confirm
        self.attack, self.traits = game.attack, Traits.of(game.attack)
        every = torch.arange(len(game.x), device=game.x.device)
        self.example = every if game.example is None else game.example
        self.first = (
            np.zeros(len(every), np.int64) if game.restart is None else game.restart.cpu().numpy()
        )
        # Where the runs of an item are rows of their own, each row has the one.
        self.runs = (
            checked_restart_count(game.attack, game.clean_logits.shape[1])
            if game.restart is None
            else 1
        )
        self.looks = FinalCheck(game, confirm)
        self.ahead = SpeculativeQueries(game)
        lost = set(game.reached_on_clean.nonzero()[:, 0].tolist())
        self.queue = [item for item in items if item not in lost][::-1]
        self.settled, self.finished = list[Candidates](), 0
        """What is to be handed on next, and how many items that is."""
        if free := [item for item in items if item in lost]:
            self._finish(Candidates.of_clean_images(game, free))
        self.since = time.monotonic()
        self.item = np.full(0, -1, dtype=np.int64)
        # A group of a random defense keeps its beat: its draws belong to all of its rows.
        self.grouped = game.noise is not None
        # Only the CPU answers the host for nothing; elsewhere a step runs without a look back.
        self.on_cpu = game.x.device.type == "cpu"
        self.claims = 0
        if self.queue:
            self._lay()

    def _lay(self) -> None:
        """Lay the slots and start the first items; what is left over repeats the last, idle."""
        game, device = self.game, self.game.x.device
        size = (
            NOISE_GROUP
            if self.grouped
            else min(padded_size(game.slots), padded_size(len(self.queue)))
        )
        seated = [self.queue.pop() for _ in range(min(size, len(self.queue)))]
        first = pad_rows(torch.tensor(seated, device=device), size)
        self.rows = rows = BatchProblem(
            game.model_access, game.ball, game.goal, game.x[first], game.y[first],
            target=game.target[first], clean_logits=game.clean_logits[first], example=self.example[first],
            seed=game.seed, name=self.attack.name, budget=game.budget,
        )  # fmt: skip
        rows.active = torch.arange(size, device=device) < len(seated)
        # A transfer attack must not learn from the target whether it has won.
        rows.on_query = None if self.traits.source else self._watch
        self.slots = Slots.empty(rows.x)
        self.slots.playing = rows.active.clone()
        self.item = np.full(size, -1, dtype=np.int64)
        self.item[: len(seated)] = seated
        self.run = np.zeros(size, dtype=np.int64)
        self.run[: len(seated)] = self.first[seated]
        rows.restart = self._on_device(self.run).clone()
        rows.reset_keys()
        self.t = np.zeros(size, dtype=np.int64)
        self.state = self.attack.start(rows.at_start(torch.arange(size, device=device)))

    def play(self) -> Iterator[Candidates]:
        """Everything in the queue, in chunks."""
        while self._busy() or self.looks.waiting:
            self._admit(self._arrivals())
            self._shrink()
            self._advance()
            self._settle()
            if self._due():
                yield self._hand_over()
        if self.settled:
            yield self._hand_over()

    def _busy(self) -> bool:
        return bool(self.queue) or bool((self.item >= 0).any())

    def _arrivals(self) -> Places:
        """Free slots that take up the next items of the queue."""
        free = np.flatnonzero(self.item < 0)[: len(self.queue)]
        if len(free):
            self.item[free] = [self.queue.pop() for _ in free]
            self.run[free] = self.first[self.item[free]]
            self._seat(self._on_device(free))
        return free

    def _seat(self, where: Tensor) -> None:
        """Bring new items' data into these slots, nothing spent and nothing found."""
        rows, game = self.rows, self.game
        item = self._on_device(self.item)[where]
        rows.x[where], rows.y[where] = game.x[item], game.y[item]
        rows.target[where], rows.clean[where] = game.target[item], game.clean_logits[item]
        rows.example[where] = self.example[item]
        rows.ledger.reset(where)
        self.slots.forget(where)

    def _admit(self, slots: Places) -> None:
        """Start a run in these slots."""
        if not len(slots):
            return
        rows, where = self.rows, self._on_device(slots)
        self.ahead.forget()
        self.t[slots] = 0
        rows.t[where] = 0
        rows.restart[where] = self._on_device(self.run)[where]
        rows.active[where] = True
        self.slots.begin(where)
        rows.reset_keys()
        fresh = self.attack.start(rows.at_start(pad_rows(where, padded_size(len(slots)))))
        # Out of place: fields of a state may share their memory.
        self.state = map_state(
            lambda old, new: old.index_copy(0, where, new[: len(slots)].to(old.dtype)),
            self.state,
            fresh,
        )

    def _shrink(self) -> None:
        """Give up slots that nobody will take: the tail plays in ever smaller batches."""
        if self.queue:
            return
        playing = int((self.item >= 0).sum())
        if self.grouped:
            size = rounded_size(playing)
        else:
            size = smallest_exact_batch(
                self.game.model_access, images_of(self.state), playing, self._left()
            )
        if size > SPARE * len(self.item):
            return
        kept = np.sort(np.argsort(self.item < 0, kind="stable")[:size])
        self.item, self.run, self.t = self.item[kept], self.run[kept], self.t[kept]
        where = self._on_device(kept)
        self.rows.keep(where)
        self.ahead.forget()
        self.slots = self.slots.kept(where)
        self.state = map_state(lambda field: field[where], self.state)

    def _left(self) -> int:
        """Steps that some row may still make."""
        there = self.item >= 0
        runs = (self.runs - 1 - self.run[there]).max(initial=0)
        return int(runs * self.attack.steps + (self.attack.steps - self.t[there]).max(initial=0))

    def _advance(self) -> None:
        """Play until a settlement is due: every few steps, or when many slots have won."""
        self.claims = 0
        places = self.ahead.places(int((self.item >= 0).sum()), len(self.item))
        if places:
            self._leap(places)
            return
        before = self.state
        for _ in range(self._stride()):
            before = self.state
            self._step()
            if self.claims >= max(CROWD, len(self.item) // CROWD):
                return
        self.ahead.learn(before, self.state, self.slots.playing)

    def _stride(self) -> int:
        """Steps until the next settlement: no row may pass its last step."""
        left = int(self.attack.steps - self.t[self.item >= 0].max(initial=0))
        return min(left, 1 if self.rows.ledger.limited else STRIDE)

    def _step(self) -> None:
        before = images_of(self.state)
        self.state = self.attack.step(self.rows, self.state)
        self.game.heartbeat()
        if self.rows.ledger.limited:
            # What a row makes of answers that it could not pay for does not count.
            refused = self.rows.ledger.refused & self.slots.playing & ~self.slots.ended
            self.slots.converge(refused, before, self.rows.t)
        self.rows.t = self.rows.t + self.slots.playing
        self.t += 1
        if self.traits.stop_rule is StopRule.CONVERGENCE:
            converged = self.attack.done(self.state) & self.rows.active  # type: ignore[attr-defined]
            if not self.on_cpu or converged.any():
                self.slots.converge(converged, images_of(self.state), self.rows.t)
                self.rows.active = self.rows.active & ~converged
                self._count(converged)

    def _leap(self, places: int) -> None:
        """Several steps of each row at once, where most steps change nothing."""
        rows, slots = self.rows, self.slots
        where = (slots.playing & ~slots.found).nonzero()[:, 0]
        leap = self.ahead.leap(rows, self.state, where, places)
        self.game.heartbeat()
        rows.ledger.forwards.index_add_(0, where, leap.made)
        if rows.on_query is not None and (not self.on_cpu or leap.won.any()):
            adv = rows.x.index_copy(0, where, leap.adv)
            silent = leap.answer.new_zeros(len(adv), leap.answer.shape[1])
            answer = silent.index_copy(0, where, leap.answer)
            rows.t = rows.t.index_add(0, where, leap.made - 1)
            rows.on_query(adv, answer, slots.playing & ~slots.found)
            rows.t = rows.t.index_add(0, where, 1 - leap.made)
        rows.t = rows.t.index_add(0, where, leap.made)
        self.t[where.cpu().numpy()] += leap.made.cpu().numpy()
        self.state = leap.state

    def _watch(self, adv: Tensor, answer: Tensor, allowed: Tensor) -> None:
        """Hear an offer: record first successes, and the nearest one of a minimising attack."""
        slots, x = self.slots, self.rows.x
        hit = self.rows.wrong(answer) & allowed & ~slots.found
        if self.on_cpu and not hit.any():
            return
        if self.traits.minimises:
            distance = self.game.ball.distance(adv, x)
            nearer = hit & (distance < slots.distance)
            # A first success inside the ball is nearer than whatever was outside.
            if self.on_cpu and not nearer.any():
                return
            flat = adv.flatten(1)
            better = nearer & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
            inside = nearer & self.game.ball.contains(adv, x)
            slots.distance = torch.where(better, distance, slots.distance)
        else:
            inside = better = hit & self.game.ball.contains(adv, x)
        slots.best = torch.where(per_row(better, adv), adv.detach(), slots.best)
        slots.hit_step = torch.where(better, self.rows.t, slots.hit_step)
        slots.hit_run = torch.where(better, self.rows.restart, slots.hit_run)
        if self.game.goal.kind != "nearest":
            # What is spent until the next settlement is not part of the price of this success,
            # but it is counted, for the referee may refuse the claim and the row goes on.
            ledger = self.rows.ledger
            slots.hit_forwards = torch.where(inside, ledger.forwards, slots.hit_forwards)
            slots.hit_gradients = torch.where(inside, ledger.gradients, slots.hit_gradients)
            slots.found = slots.found | inside
            if self.traits.stop_rule is not StopRule.NEVER:
                self._count(inside)

    def _count(self, leaving: Tensor) -> None:
        """Rows [n] bool that have nothing more to do: a reason to settle soon."""
        if self.on_cpu and not self.grouped:
            self.claims += int(leaving.sum())

    def _settle(self) -> None:
        """Confirm wins, end spent runs and begin the next, look when enough are waiting."""
        slots = self.slots
        if self.on_cpu and self._quiet():
            return
        over = self._on_device(self.t >= self.attack.steps)
        over = slots.playing & (over | slots.ended | self.rows.ledger.refused)
        claimed = slots.found & (over if self.traits.stop_rule is StopRule.NEVER else slots.playing)
        won = self._confirmed(claimed)
        self._end(numbers(over & ~won))
        winners = numbers(won)
        # An earlier run's last iterate may have won before this one did.
        if len(winners) and self.looks.holds(torch.from_numpy(self.item[winners])):
            self._look()
        self._retire(winners[self.item[winners] >= 0])
        if self.looks.full or self.traits.minimises or not self._busy():
            self._look()

    def _quiet(self) -> bool:
        """Whether every row simply plays on; asked where the answer is at hand."""
        playing = self.item >= 0
        if not playing.any() or (playing & (self.t >= self.attack.steps)).any():
            return False
        slots = self.slots
        told = slots.found | slots.ended | self.rows.ledger.refused
        return not (told & slots.playing).any()

    def _confirmed(self, found: Tensor) -> Tensor:
        """The claims that the referee's rule upholds; the other rows go on."""
        where = found.nonzero()[:, 0]
        if len(where) == 0:
            return found
        upheld = self.confirm(self._on_device(self.item)[where], self.slots.best[where])
        self.slots.forget(where[~upheld])
        return found.index_copy(0, where, upheld)

    def _end(self, slots: Places) -> None:
        """Queue these rows' last iterates for a look; go on to their next runs."""
        if not len(slots):
            return
        where, rows, known = self._on_device(slots), self.rows, self.slots
        ended = known.ended[where]
        adv = torch.where(per_row(ended, rows.x), known.last[where], images_of(self.state)[where])
        step = torch.where(ended, known.last_step[where], rows.t[where])
        ledger = rows.ledger
        spent = (ledger.forwards, ledger.gradients, known.hit_step, known.hit_run)
        counts = torch.stack([step, *(fact[where] for fact in spent)]).cpu()
        step, forwards, gradients, near_step, near_run = counts.unbind(0)
        item, run = self.item[slots], self.run[slots]
        final = (run + 1 >= self.runs) | ledger.refused[where].cpu().numpy()
        self.looks.waiting.append(
            EndedRestarts(
                item=torch.from_numpy(item),
                restart=torch.from_numpy(run),
                final=torch.from_numpy(final),
                image=adv,
                forwards=forwards,
                gradients=gradients,
                step=step,
                nearest_image=known.best[where],
                nearest_distance=known.distance[where].double().cpu(),
                nearest_step=near_step,
                nearest_restart=near_run,
            )
        )
        again = slots[~final]
        self.run[again] += 1
        self._clear(slots[final])
        self._admit(again)

    def _look(self) -> None:
        if not self.looks.waiting:
            return
        settled, nearer, nearest = self.looks.settle()
        if len(settled.item):
            self._finish(settled)
            self._clear(self._seats(settled.item))
            self._outrun(settled.item[settled.step >= 0])
        if len(nearer):
            known = self.slots
            seat = {item: slot for slot, item in enumerate(self.item.tolist())}
            where = self._on_device(np.array([seat[item] for item in nearer.tolist()]))
            known.best[where] = nearest.image
            known.distance[where] = nearest.distance.to(known.distance)
            known.hit_step[where] = nearest.step.to(known.hit_step)
            known.hit_run[where] = nearest.restart.to(known.hit_run)

    def _retire(self, slots: Places) -> None:
        """Rows that won at one of their own queries."""
        if not len(slots):
            return
        where, known = self._on_device(slots), self.slots
        facts = (known.hit_forwards, known.hit_gradients, known.hit_step)
        forwards, gradients, step = torch.stack([fact[where] for fact in facts]).cpu().unbind(0)
        item, run = (torch.from_numpy(column[slots]) for column in (self.item, self.run))
        self._finish(Candidates(
            item=item, image=known.best[where], forwards=forwards, gradients=gradients,
            final_checks=run, step=step, restart=run,
            distance=torch.full(item.shape, math.inf, dtype=torch.float64),
        ))  # fmt: skip
        self._clear(slots)
        self._outrun(item)

    def _outrun(self, won: Tensor) -> None:
        """Let go of the later runs of items that have won in an earlier one, if they are rows."""
        if self.game.restart is None:
            return
        late = set[int]()
        for item in won.tolist():
            end = item + 1
            while end < len(self.first) and self.first[end] > self.first[item]:
                end += 1
            late |= set(range(item + 1, end))
        self.queue = [item for item in self.queue if item not in late]
        gone = torch.tensor(sorted(late), dtype=torch.int64)
        self.looks.drop(gone)
        self._clear(self._seats(gone))

    def _seats(self, items: Tensor) -> Places:
        """The slots in which these items [n] sit, if they still do."""
        taken = np.flatnonzero(self.item >= 0)
        return taken[np.isin(self.item[taken], items.numpy())]

    def _clear(self, slots: Places) -> None:
        if len(slots):
            where = self._on_device(slots)
            self.item[slots] = -1
            self.rows.active[where] = False
            self.slots.playing[where] = False
            self.rows.t[where] = 0

    def _on_device(self, mirror: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Tensor:
        return torch.from_numpy(mirror).to(self.game.x.device)

    def _due(self) -> bool:
        if self.grouped or not self.settled:
            return False
        return self.finished >= CHUNK or time.monotonic() - self.since > SECONDS

    def _finish(self, part: Candidates) -> None:
        self.settled.append(part)
        self.finished += len(part.item)

    def _hand_over(self) -> Candidates:
        whole = concatenate(self.settled)
        self.settled, self.finished, self.since = [], 0, time.monotonic()
        return select_rows(whole, whole.item.argsort())

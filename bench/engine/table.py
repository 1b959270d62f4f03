"""The slots of one queue of items, and what is known of the rows in them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.engine.game import GROUP, Attempts, Confirm, Ended, Game, Nearest, Settled
from bench.engine.looks import Looks
from bench.plugin import Retire, Traits
from bench.problem import Rows, combine, iterate, pad, padded, runs_of
from bench.threat import per_row

STRIDE = 4  # steps between settlements: hits are recorded at the query, so none is lost
CHUNK = 64  # finished items handed on at once
SECONDS = 5.0  # or whatever is finished after so long


class Table:
    """Plays one queue. The host keeps a mirror of who sits where; the rest stays on the device."""

    def __init__(self, game: Game, confirm: Confirm, items: Sequence[int]) -> None:
        self.game, self.confirm = game, confirm
        self.attack, self.traits = game.attack, Traits.of(game.attack)
        self.runs = runs_of(game.attack, game.clean.shape[1])
        self.looks = Looks(game, confirm)
        lost = set(game.lost.nonzero()[:, 0].tolist())
        self.queue = [item for item in items if item not in lost][::-1]
        # The goal is reached on the clean image: broken at no cost.
        self.settled = [Settled(i, game.x[i], 0, 0, 0, 0, 0) for i in items if i in lost]
        self.since = time.monotonic()
        self.item = np.full(0, -1, dtype=np.int64)
        if self.queue:
            self._lay()

    def _lay(self) -> None:
        """Lay the slots, each with a row that does not play yet."""
        game, device = self.game, self.game.x.device
        grouped = game.noise is not None
        size = GROUP if grouped else min(padded(game.slots), padded(len(self.queue)))
        first = torch.full((size,), self.queue[-1], dtype=torch.int64, device=device)
        self.rows = rows = Rows(
            game.door, game.ball, game.goal, game.x[first], game.y[first],
            aim=game.aim[first], clean=game.clean[first], example=first,
            seed=game.seed, name=self.attack.name, budget=game.budget,
        )  # fmt: skip
        rows.active = torch.zeros(size, dtype=torch.bool, device=device)
        # A transfer attack must not learn from the target whether it has won.
        rows.watch = None if self.traits.source else self._watch
        self.playing = torch.zeros_like(rows.active)
        self.found = torch.zeros_like(rows.active)
        self.ended = torch.zeros_like(rows.active)
        self.best = rows.x.clone()
        self.distance = torch.full((size,), math.inf, device=device)
        self.hit_step = torch.full_like(first, -1)
        self.hit_run = torch.full_like(first, -1)
        self.hit_forwards = torch.zeros_like(first)
        self.hit_gradients = torch.zeros_like(first)
        self.last = rows.x.clone()
        self.last_step = torch.zeros_like(first)
        self.item = np.full(size, -1, dtype=np.int64)
        self.run = np.zeros(size, dtype=np.int64)
        self.t = np.zeros(size, dtype=np.int64)
        self.state = self.attack.start(rows.take(torch.arange(size, device=device)))

    def play(self) -> Iterator[Attempts]:
        """Everything in the queue, in chunks."""
        while self._busy() or self.looks.waiting:
            self._admit(self._arrivals())
            for _ in range(self._stride()):
                self._step()
            self._settle()
            if self._due():
                yield self._hand_over()
        if self.settled:
            yield self._hand_over()

    def _busy(self) -> bool:
        return bool(self.queue) or bool((self.item >= 0).any())

    def _arrivals(self) -> list[int]:
        """Free slots that take up the next items of the queue."""
        free = np.flatnonzero(self.item < 0)[: len(self.queue)]
        for slot in free:
            self.item[slot], self.run[slot] = self.queue.pop(), 0
        slots = [int(slot) for slot in free]
        if slots:
            self._seat(torch.tensor(slots, device=self.found.device))
        return slots

    def _seat(self, where: Tensor) -> None:
        """Bring new items' data into these slots, their purse full and nothing found."""
        rows, game = self.rows, self.game
        item = self._on_device(self.item)[where]
        rows.x[where], rows.y[where] = game.x[item], game.y[item]
        rows.target[where], rows.clean[where] = game.aim[item], game.clean[item]
        rows.example[where] = item
        rows.ledger.forwards[where] = 0
        rows.ledger.gradients[where] = 0
        rows.ledger.refused[where] = False
        self.found[where] = False
        self.distance[where] = math.inf

    def _admit(self, slots: list[int]) -> None:
        """Start a run in these slots."""
        if not slots:
            return
        rows, where = self.rows, torch.tensor(slots, device=self.found.device)
        self.t[slots] = 0
        rows.t[where] = 0
        rows.run[where] = self._on_device(self.run)[where]
        rows.active[where] = True
        self.playing[where] = True
        self.ended[where] = False
        rows.rekey()
        fresh = self.attack.start(rows.take(pad(where, padded(len(slots)))))
        # Out of place: fields of a state may share their memory.
        self.state = combine(
            lambda old, new: old.index_copy(0, where, new[: len(slots)].to(old.dtype)),
            self.state,
            fresh,
        )

    def _stride(self) -> int:
        """Steps until the next settlement: no row may pass its last step."""
        left = int(self.attack.steps - self.t[self.item >= 0].max(initial=0))
        return min(left, 1 if self.rows.ledger.limited else STRIDE)

    def _step(self) -> None:
        self.state = self.attack.step(self.rows, self.state)
        self.rows.t = self.rows.t + self.playing
        self.t += 1
        if self.traits.retires is Retire.CONVERGENCE:
            converged = self.attack.done(self.state) & self.rows.active  # type: ignore[attr-defined]
            if converged.any():
                self.last[converged] = iterate(self.state)[converged]
                self.last_step[converged] = self.rows.t[converged]
                self.ended |= converged
                self.rows.active = self.rows.active & ~converged

    def _watch(self, adv: Tensor, logits: Tensor, allowed: Tensor) -> None:
        """Hear an offer: record first successes, and the nearest one of a minimising attack."""
        hit = self.rows.wrong(logits) & allowed & ~self.found
        if not hit.any():
            return
        inside = hit & self.game.ball.contains(adv, self.rows.x)
        better = inside
        if self.traits.minimises:
            distance = self.game.ball.distance(adv, self.rows.x)
            flat = adv.flatten(1)
            boxed = hit & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
            better = boxed & (distance < self.distance)
            self.distance = torch.where(better, distance, self.distance)
        self.best = torch.where(per_row(better, adv), adv.detach(), self.best)
        self.hit_step = torch.where(better, self.rows.t, self.hit_step)
        self.hit_run = torch.where(better, self.rows.run, self.hit_run)
        if self.game.goal.kind != "nearest":
            # What is spent until the next settlement is not part of the price of this success,
            # but it is counted, for the referee may refuse the claim and the row goes on.
            ledger = self.rows.ledger
            self.hit_forwards = torch.where(inside, ledger.forwards, self.hit_forwards)
            self.hit_gradients = torch.where(inside, ledger.gradients, self.hit_gradients)
            self.found = self.found | inside

    def _settle(self) -> None:
        """Confirm wins, end spent runs and begin the next, look when enough are waiting."""
        over = self._on_device(self.t >= self.attack.steps)
        over = self.playing & (over | self.ended | self.rows.ledger.refused)
        claimed = self.found & (over if self.traits.retires is Retire.NEVER else self.playing)
        won = self._confirmed(claimed)
        spent = over & ~won
        self._end(_slots(spent))
        winners = _slots(won)
        # An earlier run's last iterate may have won before this one did.
        if self.looks.holds({int(self.item[slot]) for slot in winners}):
            self._look()
        self._retire([slot for slot in winners if self.item[slot] >= 0])
        if self.looks.full or self.traits.minimises or not self._busy():
            self._look()

    def _confirmed(self, found: Tensor) -> Tensor:
        """The claims that the referee's rule upholds; the other rows go on."""
        slots = found.nonzero()[:, 0]
        if len(slots) == 0:
            return found
        upheld = self.confirm(self._on_device(self.item)[slots], self.best[slots])
        refused = slots[~upheld]
        won = found.clone()
        won[refused] = False
        self.found[refused] = False
        self.distance[refused] = math.inf
        return won

    def _end(self, slots: list[int]) -> None:
        """Queue these rows' last iterates for a look; go on to their next runs."""
        if not slots:
            return
        where = torch.tensor(slots, device=self.found.device)
        adv = iterate(self.state)[where]
        adv = torch.where(per_row(self.ended[where], adv), self.last[where], adv)
        step = torch.where(self.ended[where], self.last_step[where], self.rows.t[where]).tolist()
        ledger = self.rows.ledger
        forwards, gradients = ledger.forwards[where].tolist(), ledger.gradients[where].tolist()
        refused = self.rows.ledger.refused[where].tolist()
        again = []
        for row, slot in enumerate(slots):
            final = int(self.run[slot]) + 1 >= self.runs or refused[row]
            item, run = int(self.item[slot]), int(self.run[slot])
            spent = (forwards[row], gradients[row])
            ended = Ended(item, run, final, adv[row], *spent, step[row], self._nearest(slot))
            self.looks.add(ended)
            if not final:
                self.run[slot] += 1
                again.append(slot)
        self._clear([slot for slot in slots if slot not in set(again)])
        self._admit(again)

    def _nearest(self, slot: int) -> Nearest | None:
        distance = float(self.distance[slot])
        if not math.isfinite(distance):
            return None
        step, run = int(self.hit_step[slot]), int(self.hit_run[slot])
        return Nearest(self.best[slot].clone(), distance, step, run)

    def _look(self) -> None:
        for outcome in self.looks.settle():
            if isinstance(outcome, Settled):
                self.settled.append(outcome)
                self._clear([int(s) for s in np.flatnonzero(self.item == outcome.item)])
                continue
            item, nearest = outcome
            for slot in np.flatnonzero(self.item == item):
                self.best[slot] = nearest.image
                self.distance[slot] = nearest.distance
                self.hit_step[slot], self.hit_run[slot] = nearest.step, nearest.run

    def _retire(self, slots: list[int]) -> None:
        """Rows that won at one of their own queries."""
        if not slots:
            return
        where = torch.tensor(slots, device=self.found.device)
        forwards, gradients = self.hit_forwards[where].tolist(), self.hit_gradients[where].tolist()
        step = self.hit_step[where].tolist()
        for row, slot in enumerate(slots):
            run = int(self.run[slot])
            image = self.best[slot].clone()
            spent = (forwards[row], gradients[row])
            self.settled.append(Settled(int(self.item[slot]), image, *spent, run, step[row], run))
        self._clear(slots)

    def _clear(self, slots: list[int]) -> None:
        if slots:
            where = torch.tensor(slots, device=self.found.device)
            self.item[slots] = -1
            self.rows.active[where] = False
            self.playing[where] = False
            self.rows.t[where] = 0

    def _on_device(self, mirror: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Tensor:
        return torch.from_numpy(mirror).to(self.found.device)

    def _due(self) -> bool:
        if self.game.noise is not None or not self.settled:
            return False
        return len(self.settled) >= CHUNK or time.monotonic() - self.since > SECONDS

    def _hand_over(self) -> Attempts:
        settled, self.settled = sorted(self.settled, key=lambda entry: entry.item), []
        self.since = time.monotonic()
        images = torch.stack([entry.image for entry in settled])
        numbers = [[e.item, e.forwards, e.gradients, e.looks, e.step, e.run] for e in settled]
        item, *counts = torch.tensor(numbers, dtype=torch.int64).unbind(1)
        return Attempts(item, images, *counts)


def _slots(where: Tensor) -> list[int]:
    return [int(slot) for slot in where.nonzero()[:, 0].tolist()]

"""Last looks: one harness forward for each run's last iterate, pooled into full batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from bench.engine.game import Confirm, Ended, Game, Nearest, Settled
from bench.problem import pad, padded

POOL = 64  # last looks worth one forward


class Looks:
    """Runs that ended unbroken, waiting to be looked at together."""

    def __init__(self, game: Game, confirm: Confirm) -> None:
        self.game, self.confirm = game, confirm
        self.waiting: list[Ended] = []

    def add(self, entries: Iterable[Ended]) -> None:
        """Queue some; entries of an item come in the order of its runs."""
        self.waiting.extend(entries)

    @property
    def full(self) -> bool:
        """Enough for one forward."""
        return len(self.waiting) >= POOL

    def holds(self, items: set[int]) -> bool:
        """Whether one of these items has an earlier run waiting."""
        return any(entry.item in items for entry in self.waiting)

    def drop(self, items: set[int]) -> None:
        """Forget these."""
        self.waiting = [entry for entry in self.waiting if entry.item not in items]

    def settle(self) -> Iterator[Settled | tuple[int, Nearest]]:
        """Look at all that wait; the earliest run that won counts.

        Yields:
            Settled items, and (item, nearest) where a run that is not the last found a nearer one.
        """
        entries, self.waiting = self.waiting, []
        if not entries:
            return
        won, distance = self._look(entries)
        resolved: set[int] = set()
        for entry, hit, far in zip(entries, won, distance, strict=True):
            if entry.item in resolved:
                continue
            found = _nearest(entry, hit, far)
            if self.game.goal.kind == "nearest" and not entry.final:
                if found is not None:
                    yield entry.item, found
            elif hit or entry.final:
                resolved.add(entry.item)
                yield self._settled(entry, hit, found)

    def _look(self, entries: list[Ended]) -> tuple[list[bool], list[float]]:
        images = torch.stack([entry.image for entry in entries])
        items = torch.tensor([entry.item for entry in entries], device=images.device)
        x = self.game.x[items]
        logits = self.game.defense.logits(pad(images, padded(len(entries))))[: len(entries)]
        won = self.game.reached(logits, items) & self.game.ball.contains(images, x)
        if won.any():
            claimed = won.nonzero()[:, 0]
            won[claimed] = self.confirm(items[claimed], images[claimed])
        distance: Tensor = self.game.ball.distance(images, x)
        return won.tolist(), distance.tolist()

    def _settled(self, entry: Ended, hit: bool, found: Nearest | None) -> Settled:
        """On a board only a hit is claimed; on a distance board the nearest success is."""
        claimed = hit or self.game.goal.kind == "nearest"
        if found is None:
            found = Nearest(entry.image, math.inf, -1, -1)
        return Settled(
            entry.item, found.image, entry.forwards, entry.gradients, entry.run + 1,
            found.step if claimed else -1, found.run if claimed else -1, found.distance,
        )  # fmt: skip


def _nearest(entry: Ended, hit: bool, distance: float) -> Nearest | None:
    """The better of the last iterate and the nearest success before it."""
    if hit and (entry.nearest is None or distance < entry.nearest.distance):
        return Nearest(entry.image, distance, entry.step, entry.run)
    return entry.nearest

"""Last looks: one harness forward for each run's last iterate, pooled into full batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.engine.cell_spec import (
    Candidates,
    CellSpec,
    Confirm,
    EndedRestarts,
    NearestCandidates,
    concatenate,
    select_rows,
)
from bench.engine.problem import pad_rows, padded_size

POOL = 64  # last looks worth one forward


class FinalCheck:
    """Runs that ended unbroken, waiting to be looked at together; those of an item in order."""

    def __init__(self, game: CellSpec, confirm: Confirm) -> None:
        self.game, self.confirm = game, confirm
        self.waiting: list[EndedRestarts] = []

    @property
    def full(self) -> bool:
        """Enough for one forward."""
        return sum(len(part.item) for part in self.waiting) >= POOL

    def holds(self, items: Tensor) -> bool:
        """Whether one of these items [n] has an earlier run waiting."""
        return any(bool(torch.isin(part.item, items).any()) for part in self.waiting)

    def drop(self, items: Tensor) -> None:
        """Forget these [n]."""
        kept = (select_rows(part, ~torch.isin(part.item, items)) for part in self.waiting)
        self.waiting = [part for part in kept if len(part.item)]

    def settle(self) -> tuple[Candidates, Tensor, NearestCandidates]:
        """Look at all that wait; the earliest run that won counts.

        Returns:
            The items whose verdict is known; then those [n] of a distance board with runs to
            come whose nearest success is known, and that.
        """
        ended, self.waiting = concatenate(self.waiting), []
        won, distance = self._look(ended)
        nearest = ended.nearest(won, distance)
        claims = self.game.goal.kind == "nearest"
        over = first_of_each(ended.item, ended.final if claims else ended.final | won)
        claimed = torch.ones_like(won) if claims else won
        settled = Candidates(
            item=ended.item, image=nearest.image,
            forwards=ended.forwards, gradients=ended.gradients, final_checks=ended.restart + 1,
            step=torch.where(claimed, nearest.step, -1), restart=torch.where(claimed, nearest.restart, -1),
            distance=nearest.distance,
        )  # fmt: skip
        nearer = (claims & ~ended.final & ~nearest.distance.isinf()).nonzero()[:, 0]
        return select_rows(settled, over), ended.item[nearer], select_rows(nearest, nearer)

    def _look(self, ended: EndedRestarts) -> tuple[Tensor, Tensor]:
        images, count = ended.image, len(ended.item)
        items = ended.item.to(images.device)
        x = self.game.x[items]
        logits = self.game.defense.logits(pad_rows(images, padded_size(count)))[:count]
        won = self.game.reaches_goal(logits, items) & self.game.ball.contains(images, x)
        if won.any():
            claimed = won.nonzero()[:, 0]
            won[claimed] = self.confirm(items[claimed], images[claimed])
        return won.cpu(), self.game.ball.distance(images, x).double().cpu()


def first_of_each(item: Tensor, where: Tensor) -> Tensor:
    """Of the places `where` [m] bool the first one of each item, in order."""
    places = where.nonzero()[:, 0].numpy()
    _, first = np.unique(item.numpy()[places], return_index=True)
    return torch.from_numpy(places[np.sort(first)])

"""The final check: one query of the last iterate of each ended restart, pooled into full batches.

The last iterate of a restart is never queried by the attack itself.
"""

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

POOL = 64  # pending restarts that are worth one forward


class FinalCheck:
    """Pools restarts that ended without a success and queries their last iterates together.

    The restarts of one item are pending in their own order.
    """

    def __init__(self, spec: CellSpec, confirm: Confirm) -> None:
        self.spec, self.confirm = spec, confirm
        self.pending: list[EndedRestarts] = []

    @property
    def full(self) -> bool:
        """Whether enough restarts are pending for one forward."""
        return sum(len(part.item) for part in self.pending) >= POOL

    def contains_any(self, items: Tensor) -> bool:
        """Whether a restart of one of these items [k] is pending."""
        return any(bool(torch.isin(part.item, items).any()) for part in self.pending)

    def discard(self, items: Tensor) -> None:
        """Removes the pending restarts of these items [k]."""
        kept = (select_rows(part, ~torch.isin(part.item, items)) for part in self.pending)
        self.pending = [part for part in kept if len(part.item)]

    def run(self) -> tuple[Candidates, Tensor, NearestCandidates]:
        """Checks all pending restarts; of an item's restarts the first that succeeds counts.

        Returns:
            The candidates of items that are finished; then, for the goal `nearest` and items with
            restarts to come, those [k] that have a nearest success, and that success.
        """
        ended, self.pending = concatenate(self.pending), []
        won, distance = self._query(ended)
        nearest = ended.nearest(won, distance)
        keeps_nearest = self.spec.goal.kind == "nearest"
        finished = first_of_each(ended.item, ended.final if keeps_nearest else ended.final | won)
        claimed = torch.ones_like(won) if keeps_nearest else won
        candidates = Candidates(
            item=ended.item, image=nearest.image,
            forwards=ended.forwards, gradients=ended.gradients, final_checks=ended.restart + 1,
            step=torch.where(claimed, nearest.step, -1),
            restart=torch.where(claimed, nearest.restart, -1), distance=nearest.distance,
        )  # fmt: skip
        nearer = (keeps_nearest & ~ended.final & ~nearest.distance.isinf()).nonzero()[:, 0]
        return select_rows(candidates, finished), ended.item[nearer], select_rows(nearest, nearer)

    def _query(self, ended: EndedRestarts) -> tuple[Tensor, Tensor]:
        """Success [m] bool and distance [m] of the last iterates."""
        adv, count = ended.image, len(ended.item)
        items = ended.item.to(adv.device)
        x = self.spec.x[items]
        images = self.spec.ball.apply(adv, x)
        logits = self.spec.defense.logits(pad_rows(images, padded_size(count)))[:count]
        won = self.spec.reaches_goal(logits, items) & self.spec.ball.contains(adv, x)
        if won.any():
            claimed = won.nonzero()[:, 0]
            won[claimed] = self.confirm(items[claimed], adv[claimed])
        return won.cpu(), self.spec.ball.distance(adv, x).double().cpu()


def first_of_each(item: Tensor, where: Tensor) -> Tensor:
    """Among the rows `where` [m] bool the first row of each item [m]; row numbers in order."""
    rows = where.nonzero()[:, 0].numpy()
    _, first = np.unique(item.numpy()[rows], return_index=True)
    return torch.from_numpy(rows[np.sort(first)])

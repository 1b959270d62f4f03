"""What a run of its own has found so far, row by row, and what that had cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.engine.answers import predicted_labels, reaches_goal
from bench.engine.cell_spec import Candidates, CellSpec, Confirm, select_rows
from bench.engine.external_model import ExternalLedger
from bench.engine.problem import pad_rows, padded_size
from bench.threats.norms import per_row


class ExternalTracker:
    """Hears every answer of the defense; keeps each row's first success, or its nearest.

    Args:
        game: the cell.
        confirm: the referee's rule, asked before a success is kept.
        items: [n] the item of each row.
        till: what each row has spent.
        watching: False for a transfer attack, which must not learn whether it has won.
    """

    def __init__(
        self,
        game: CellSpec,
        confirm: Confirm,
        items: Tensor,
        till: ExternalLedger,
        *,
        watching: bool,
    ) -> None:
        self.game, self.confirm, self.items, self.till = game, confirm, items, till
        self.watching = watching
        self.nearest = game.goal.kind == "nearest"
        self.targeted = game.goal.kind == "targeted"
        self.rejects = game.model_access.rejects
        self.label = (game.target if self.targeted else game.y)[items]
        self.x = game.x[items]
        self.image = self.x.clone()
        self.distance = torch.full((len(items),), math.inf, device=items.device)
        self.unbroken = till.active.clone()
        """Rows whose first success is still to come."""
        self.forwards = torch.zeros_like(items)
        self.gradients = torch.zeros_like(items)
        self.step = torch.full_like(items, -1)

    def observe(self, images: Tensor, answer: Tensor, rows: Tensor) -> bool:
        """Keep what succeeds; True when every row has won, on boards where that is the end."""
        self.game.heartbeat()
        if not self.watching:
            return False
        label, still = self.label, self.unbroken
        if rows is not self.till.all_rows:
            label, still = label[rows], still[rows]
        said = predicted_labels(answer, rejects=self.rejects)
        hit = reaches_goal(said, label, targeted=self.targeted, rejects=self.rejects) & still
        if not hit.any():
            return False
        index = self._upheld(hit.nonzero()[:, 0], images, rows)
        if len(index):
            self._keep(index, images, rows)
        return not self.nearest and not self.unbroken.any()

    def _upheld(self, index: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        """Of these answers, those that are worth keeping; at most one a row."""
        where, adv = rows[index], images[index]
        distance = self.game.ball.distance(adv, self.x[where])
        if self.nearest:
            flat = adv.flatten(1)
            better = (flat.amin(1) >= 0) & (flat.amax(1) <= 1) & (distance < self.distance[where])
        else:
            better = self.game.ball.contains(adv, self.x[where])
        index, distance = index[better], distance[better]
        if len(self.items) == 1 and len(index) > 1:
            best = int(distance.argmin()) if self.nearest else 0
            index = index[best : best + 1]
        if not self.nearest and len(index):
            index = index[self.confirm(self.items[rows[index]], images[index])]
        return index

    def _keep(self, index: Tensor, images: Tensor, rows: Tensor) -> None:
        where = rows[index]
        self.image[where] = images[index]
        self.distance[where] = self.game.ball.distance(images[index], self.x[where])
        # One row, many images: those after the first success are not part of its price.
        later = len(rows) - 1 - index if len(self.items) == 1 else torch.zeros_like(index)
        draws = self.game.model_access.draws
        ledger = self.till.ledger
        forwards = ledger.forwards[where] - later * draws
        self.step[where] = forwards // draws - 1
        if not self.nearest:
            self.forwards[where] = forwards
            self.gradients[where] = ledger.gradients[where]
            self.unbroken[where] = False

    def candidates(self, returned: Tensor | None) -> Candidates:
        """What each row brings to the referee; `returned` [n, C, H, W] unless it was stopped."""
        ledger = self.till.ledger
        forwards = torch.where(self.unbroken, ledger.forwards, self.forwards)
        gradients = torch.where(self.unbroken, ledger.gradients, self.gradients)
        looks = torch.zeros_like(self.items)
        if returned is not None and self.unbroken.any():
            self._look(returned)
            looks = self.unbroken.to(looks.dtype)
        # One run, which is over: number 0 where it has won.
        columns = (self.items, forwards, gradients, looks, self.step, self.step.clamp_max(0))
        item, *counts = (column.cpu() for column in columns)
        every = Candidates._make([item, self.image, *counts, self.distance.double().cpu()])
        return select_rows(every, self.till.active)

    def _look(self, returned: Tensor) -> None:
        """One harness forward at the returned images of the rows that are still open."""
        game, where = self.game, self.unbroken.nonzero()[:, 0]
        items, adv, x = self.items[where], returned[where], self.x[where]
        rows = 1 if len(self.items) == 1 else padded_size(len(adv))
        logits = game.defense.logits(pad_rows(adv, rows))[: len(adv)]
        won = game.reaches_goal(logits, items) & game.ball.contains(adv, x)
        if won.any():
            claimed = won.nonzero()[:, 0]
            won[claimed] = self.confirm(items[claimed], adv[claimed])
        distance = game.ball.distance(adv, x)
        won &= distance < self.distance[where]
        empty = self.distance[where].isinf()
        self.image[where] = torch.where(per_row(won | empty, adv), adv, self.image[where])
        step = self.till.ledger.forwards[where] // game.model_access.draws
        self.step[where] = torch.where(won, step, self.step[where])

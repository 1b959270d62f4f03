"""Tracks the successes of an external attack, row by row, with their cost."""

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
    """Keeps the first confirmed success of each row, or its nearest for the goal `nearest`.

    Args:
        spec: the cell.
        confirm: the referee's rule, applied before a first success is kept.
        items: [n] int64, the item of each row.
        ledger: what each row has spent.
        tracks: False for a transfer attack, which must not learn whether it has succeeded.
        draws: number of draws, and of queries, behind each answer.
    """

    def __init__(
        self,
        spec: CellSpec,
        confirm: Confirm,
        items: Tensor,
        ledger: ExternalLedger,
        *,
        tracks: bool,
        draws: int = 1,
    ) -> None:
        self.spec, self.confirm, self.items, self.ledger = spec, confirm, items, ledger
        self.tracks, self.draws = tracks, draws
        self.nearest = spec.goal.kind == "nearest"
        self.targeted = spec.goal.kind == "targeted"
        self.rejects = spec.model_access.rejects
        self.label = (spec.target if self.targeted else spec.y)[items]
        self.x = spec.x[items]
        self.image = self.x.clone()
        self.distance = torch.full((len(items),), math.inf, device=items.device)
        self.unbroken = ledger.active.clone()
        """[n] bool: rows without a first success."""
        self.forwards = torch.zeros_like(items)
        self.gradients = torch.zeros_like(items)
        self.step = torch.full_like(items, -1)

    def observe(self, images: Tensor, answer: Tensor, rows: Tensor) -> bool:
        """Keeps the successes among answers [b, K] to images [b, C, H, W] of the rows [b] int64.

        Returns True when every row has one, unless the goal is the nearest success.
        """
        self.spec.heartbeat()
        if not self.tracks:
            return False
        label, unbroken = self.label, self.unbroken
        if rows is not self.ledger.all_rows:
            label, unbroken = label[rows], unbroken[rows]
        predicted = predicted_labels(answer, rejects=self.rejects)
        hit = reaches_goal(predicted, label, targeted=self.targeted, rejects=self.rejects)
        hit &= unbroken
        if not hit.any():
            return False
        index = self._confirmed(hit.nonzero()[:, 0], images, rows)
        if len(index):
            self._keep(index, images, rows)
        return not self.nearest and not self.unbroken.any()

    def _confirmed(self, index: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        """The queries to keep among `index` [k] int64: confirmed or nearer, at most one a row."""
        where, adv = rows[index], images[index]
        distance = self.spec.ball.distance(adv, self.x[where])
        if self.nearest:
            flat = adv.flatten(1)
            better = (flat.amin(1) >= 0) & (flat.amax(1) <= 1) & (distance < self.distance[where])
        else:
            better = self.spec.ball.contains(adv, self.x[where])
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
        self.distance[where] = self.spec.ball.distance(images[index], self.x[where])
        # One row with many images: those after the first success are not part of its cost.
        later = len(rows) - 1 - index if len(self.items) == 1 else torch.zeros_like(index)
        ledger = self.ledger.counts
        forwards = ledger.forwards[where] - later * self.draws
        self.step[where] = forwards // self.draws - 1
        if not self.nearest:
            self.forwards[where] = forwards
            self.gradients[where] = ledger.gradients[where]
            self.unbroken[where] = False

    def candidates(self, returned: Tensor | None) -> Candidates:
        """The candidate of each row; `returned` [n, C, H, W] is None where the run was stopped."""
        ledger = self.ledger.counts
        forwards = torch.where(self.unbroken, ledger.forwards, self.forwards)
        gradients = torch.where(self.unbroken, ledger.gradients, self.gradients)
        checks = torch.zeros_like(self.items)
        if returned is not None and self.unbroken.any():
            self._check_returned(returned)
            checks = self.unbroken.to(checks.dtype)
        # An external attack has one restart, number 0.
        columns = (self.items, forwards, gradients, checks, self.step, self.step.clamp_max(0))
        item, *counts = (column.cpu() for column in columns)
        every = Candidates._make([item, self.image, *counts, self.distance.double().cpu()])
        return select_rows(every, self.ledger.active)

    def _check_returned(self, returned: Tensor) -> None:
        """Final check: queries the returned images of the rows without a success."""
        spec, where = self.spec, self.unbroken.nonzero()[:, 0]
        items, adv, x = self.items[where], returned[where], self.x[where]
        rows = 1 if len(self.items) == 1 else padded_size(len(adv))
        logits = spec.defense.logits(pad_rows(adv, rows))[: len(adv)]
        won = spec.reaches_goal(logits, items) & spec.ball.contains(adv, x)
        if won.any():
            claimed = won.nonzero()[:, 0]
            won[claimed] = self.confirm(items[claimed], adv[claimed])
        distance = spec.ball.distance(adv, x)
        won &= distance < self.distance[where]
        empty = self.distance[where].isinf()
        self.image[where] = torch.where(per_row(won | empty, adv), adv, self.image[where])
        step = self.ledger.counts.forwards[where] // self.draws
        self.step[where] = torch.where(won, step, self.step[where])

"""Deferred settlement: on a device, all that the host must know is copied at once, every few steps.

Between two settlements the host only queues work. A restart that has made its last step leaves its
slot without the host knowing whether it has succeeded; its success, if any, goes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.engine.cell_spec import (
    Candidates,
    CellSpec,
    Confirm,
    DeferredRestarts,
    concatenate,
    select_rows,
)
from bench.engine.final_check import first_of_each
from bench.engine.problem import pad_rows, padded_size
from bench.engine.slots import HostArray, HostMask, SlotArray
from bench.engine.success_tracker import SuccessTracker
from bench.engine.transfers import to_device
from bench.plugin import StopRule, Traits
from bench.threats.access import Budget
from bench.threats.norms import per_row

CLAIM_SHARE = 4  # one slot in so many can be confirmed in one settlement; others wait for the next


class Resolved(NamedTuple):
    """What the host has learned about ended restarts; [m] each, on the host."""

    won: Tensor
    """[m] bool: the claim is confirmed, or the last iterate succeeded in the final check."""
    claimed: Tensor
    distance: Tensor
    """[m] float64."""
    counts: Tensor
    """[m, 5] int64."""


class ConfirmedClaims(NamedTuple):
    """Successes of running restarts that the referee confirms; [k] each, on the host."""

    slot: HostArray
    item: Tensor
    forwards: Tensor
    gradients: Tensor
    step: Tensor
    restart: Tensor


def can_defer(spec: CellSpec) -> bool:
    """Whether only first successes and last steps end a restart of this cell.

    Convergence, a budget and nearest successes need more of the host between two steps.
    """
    traits = Traits.of(spec.attack)
    first_success = traits.stop_rule is StopRule.FIRST_SUCCESS and not traits.minimises
    plain = spec.noise is None and spec.budget == Budget() and spec.goal.kind != "nearest"
    return spec.x.device.type != "cpu" and plain and first_success


class DeferredSettlement:
    """Confirms successes and checks ended restarts with one copy to the host.

    Args:
        spec: the cell; `can_defer` holds.
        confirm: the referee's rule.
        slots: the slots, [n] of them.
        tracker: the successes of the running restarts.
    """

    def __init__(
        self, spec: CellSpec, confirm: Confirm, slots: SlotArray, tracker: SuccessTracker
    ) -> None:
        self.spec, self.confirm, self.slots, self.tracker = spec, confirm, slots, tracker
        self.pending: list[DeferredRestarts] = []

    def end(self, slots: HostArray, final: HostMask, images: Tensor) -> None:
        """Takes the restarts in these slots [k], whose last iterates are `images` [n, ...].

        `final` [k] bool on the host: the item has no later restart.
        """
        array, tracker = self.slots, self.tracker
        where = array.on_device(slots)
        ledger, claimed, image = array.problem.ledger, tracker.found[where], images[where]
        facts = (ledger.forwards, ledger.gradients, tracker.forwards, tracker.gradients,
                 tracker.step)  # fmt: skip
        self.pending.append(
            DeferredRestarts(
                item=torch.from_numpy(array.item[slots]),
                restart=torch.from_numpy(array.restart[slots]),
                step=torch.from_numpy(array.step[slots]), final=torch.from_numpy(final),
                image=image, claimed=claimed,
                claim=torch.where(per_row(claimed, image), tracker.image[where], image),
                counts=torch.stack([fact[where] for fact in facts], 1),
            )
        )  # fmt: skip
        tracker.forget(where)

    def discard(self, items: Tensor) -> None:
        """Removes the pending restarts of these items [k]."""
        kept = (select_rows(part, ~torch.isin(part.item, items)) for part in self.pending)
        self.pending = [part for part in kept if len(part.item)]

    def settle(self, also: Tensor) -> tuple[list[Candidates], Tensor]:
        """The candidates of finished items, and values of the device that the host also needs.

        Args:
            also: [j] int64 on the device.

        Returns:
            The candidates, and `also` [j] on the host. Their copy is the only wait.
        """
        ended = concatenate(self.pending) if self.pending else None
        parts = [also, self._claims()] + ([] if ended is None else [self._check(ended)])
        values = copied_to_host(parts)
        confirmed, finished = self._confirmed(values[1]), list[Candidates]()
        if ended is not None:
            finished, confirmed = self._finish_ended(ended, resolved(values[2]), confirmed)
        if len(confirmed.item):
            finished.append(self._of_claims(confirmed))
        return finished, values[0].long()

    def _claims(self) -> Tensor:
        """[6, k]: slot, confirmed, forwards, gradients, step and restart of k slots.

        The slots with a success come first; a success that the referee refuses is forgotten.
        """
        tracker, problem = self.tracker, self.slots.problem
        found = tracker.found & problem.active
        count = min(len(self.slots), padded_size(-(-len(self.slots) // CLAIM_SHARE)))
        rows = found.int().argsort(descending=True, stable=True)[:count]
        items = self.slots.on_device(np.maximum(self.slots.item, 0))[rows]
        confirmed = found[rows] & self.confirm(items, tracker.image[rows])
        tracker.found = tracker.found.index_copy(0, rows, confirmed)
        facts = (tracker.forwards, tracker.gradients, tracker.step, tracker.restart)
        return torch.stack([rows, confirmed.long(), *(fact[rows] for fact in facts)])

    def _check(self, ended: DeferredRestarts) -> Tensor:
        """[8, m]: won, claimed, distance and the five counts of ended restarts."""
        spec, count, query = self.spec, len(ended.item), ended.query
        items = to_device(ended.item, query.device)
        x = spec.x[items]
        images = spec.ball.apply(query, x)
        logits = spec.defense.logits(pad_rows(images, padded_size(count)))[:count]
        reached = spec.reaches_goal(logits, items) & spec.ball.contains(query, x)
        won = (ended.claimed | reached) & self.confirm(items, query)
        facts = (won, ended.claimed, spec.ball.distance(query, x), *ended.counts.unbind(1))
        return torch.stack([fact.double() for fact in facts])

    def _confirmed(self, claims: Tensor) -> ConfirmedClaims:
        """The confirmed claims among the rows [6, k] of `_claims`, on the host."""
        slot, confirmed, *facts = claims.long()
        chosen = confirmed.nonzero()[:, 0]
        slots = slot[chosen].numpy()
        item = torch.from_numpy(self.slots.item[slots])
        return ConfirmedClaims(slots, item, *(fact[chosen] for fact in facts))

    def _finish_ended(
        self, ended: DeferredRestarts, result: Resolved, confirmed: ConfirmedClaims
    ) -> tuple[list[Candidates], ConfirmedClaims]:
        """Finishes the items of ended restarts; returns the claims that still count.

        The first restart of an item that succeeds counts. A restart whose claim was refused gets
        its final check in the next settlement, and the item waits for it.
        """
        refused = result.claimed & ~result.won
        waiting = torch.isin(ended.item, ended.item[refused])
        self.pending = []
        if waiting.any():
            rows = waiting.nonzero()[:, 0]
            kept = select_rows(ended, rows)
            still = to_device(result.won[rows] & result.claimed[rows], kept.image.device)
            self.pending = [kept._replace(claimed=kept.claimed & still)]
        rows = first_of_each(ended.item, (result.won | ended.final) & ~waiting)
        ended_items = torch.cat([ended.item[rows], ended.item[waiting]])
        left = ~torch.isin(confirmed.item, ended_items)
        others = ConfirmedClaims(confirmed.slot[left.numpy()], *(c[left] for c in confirmed[1:]))
        return [self._of_ended(ended, result, rows)] if len(rows) else [], others

    def _of_ended(self, ended: DeferredRestarts, result: Resolved, rows: Tensor) -> Candidates:
        """The candidates of the ended restarts `rows` [k]."""
        won, counts, restart = result.won[rows], result.counts[rows], ended.restart[rows]
        by_claim = won & result.claimed[rows]
        forwards, gradients, claim_forwards, claim_gradients, claim_step = counts.unbind(1)
        step = torch.where(by_claim, claim_step, ended.step[rows])
        image = ended.query
        return Candidates(
            item=ended.item[rows], image=image[to_device(rows, image.device)],
            forwards=torch.where(by_claim, claim_forwards, forwards),
            gradients=torch.where(by_claim, claim_gradients, gradients),
            final_checks=restart + (~by_claim).long(),
            step=torch.where(won, step, -1), restart=torch.where(won, restart, -1),
            distance=result.distance[rows].masked_fill(~won | by_claim, torch.inf),
        )  # fmt: skip

    def _of_claims(self, confirmed: ConfirmedClaims) -> Candidates:
        """The candidates of confirmed claims of running restarts."""
        image = self.tracker.image[self.slots.on_device(confirmed.slot)]
        distance = torch.full(confirmed.item.shape, torch.inf, dtype=torch.float64)
        return Candidates(
            item=confirmed.item, image=image, forwards=confirmed.forwards,
            gradients=confirmed.gradients, final_checks=confirmed.restart, step=confirmed.step,
            restart=confirmed.restart, distance=distance,
        )  # fmt: skip


def resolved(values: Tensor) -> Resolved:
    """What the rows [8, m] of a check say about ended restarts."""
    won, claimed, distance, *counts = values
    return Resolved(won > 0, claimed > 0, distance, torch.stack(counts, 1).long())


def copied_to_host(parts: Sequence[Tensor]) -> list[Tensor]:
    """The values of tensors of a device, as float64 on the host, with one wait."""
    # float64 holds every count exactly.
    packed = torch.cat([part.double().flatten() for part in parts]).cpu()
    values, start = [], 0
    for part in parts:
        values.append(packed[start : start + part.numel()].view(part.shape))
        start += part.numel()
    return values

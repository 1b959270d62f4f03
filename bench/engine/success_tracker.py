"""The success tracker: first or nearest success of each slot, seen on the attack's own queries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.engine.cell_spec import Candidates, CellSpec, Confirm, NearestCandidates
from bench.engine.slots import HostArray, SlotArray
from bench.plugin import StopRule, Traits
from bench.threats.norms import per_row


class SuccessTracker:
    """Records the first success of each slot, or the nearest, and what the item had spent by then.

    A success is an image that was queried, lies in the perturbation set and in [0, 1], and whose
    answer reaches the goal. It is only claimed until the referee confirms it. An attack that
    minimises its perturbation also records nearest successes outside the set.

    Args:
        spec: the cell.
        slots: the slots, [n] of them.
    """

    def __init__(self, spec: CellSpec, slots: SlotArray) -> None:
        self.spec, self.slots = spec, slots
        traits = Traits.of(spec.attack)
        self.minimises, self.stop_rule = traits.minimises, traits.stop_rule
        # Reading a tensor costs nothing on the CPU; elsewhere the host would wait for the device.
        self.on_cpu = spec.x.device.type == "cpu"
        self.recent = 0
        """Slots in which a success was found since the scheduler set this to 0; CPU only."""
        none = torch.zeros(len(slots), dtype=torch.int64, device=spec.x.device)
        self.found = none > 0
        """[n] bool: the slot has a success that waits for its confirmation."""
        self.image = slots.problem.points.clone()
        """[n, ...]: the point of the first success, or of the nearest where the attack minimises.
        """
        self.distance = torch.full_like(none, math.inf, dtype=torch.float32)
        """[n]: distance of the nearest success to the clean image; infinite without any."""
        self.step, self.restart = none - 1, none - 1
        """[n] int64: step and restart in which it was found."""
        self.forwards, self.gradients = none, none.clone()
        """[n] int64: queries and gradient evaluations that the item had spent by then."""

    def observe(self, images: Tensor, logits: Tensor, charged: Tensor, step: Tensor) -> None:
        """Records the successes among queried images.

        Args:
            images: [n, ...], the point of one query of each slot.
            logits: [n, K], the answers, with the rejection score if there is one.
            charged: [n] bool, the slots whose query counts.
            step: [n] int64, the steps that each slot had made before the query.
        """
        problem, ball = self.slots.problem, self.spec.ball
        hit = problem.reaches_goal(logits) & charged & ~self.found
        if self.on_cpu and not hit.any():
            return
        if self.minimises:
            distance = ball.distance(images, problem.x)
            nearer = hit & (distance < self.distance)
            # A first success inside the ball is nearer than any recorded one outside.
            if self.on_cpu and not nearer.any():
                return
            flat = images.flatten(1)
            better = nearer & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
            inside = nearer & ball.contains(images, problem.x)
            self.distance = torch.where(better, distance, self.distance)
        else:
            inside = better = hit & ball.contains(images, problem.x)
        self.image = torch.where(per_row(better, images), images.detach(), self.image)
        self.step = torch.where(better, step, self.step)
        self.restart = torch.where(better, problem.restart, self.restart)
        if self.spec.goal.kind != "nearest":
            self._claim(inside)

    def _claim(self, inside: Tensor) -> None:
        """Claims successes inside the ball; what is spent after them is not part of their cost.

        The ledger goes on counting: the referee may refuse the claim, and then the item goes on.
        """
        ledger = self.slots.problem.ledger
        self.forwards = torch.where(inside, ledger.forwards, self.forwards)
        self.gradients = torch.where(inside, ledger.gradients, self.gradients)
        self.found = self.found | inside
        if self.stop_rule is not StopRule.NEVER and self.on_cpu and self.spec.noise is None:
            self.recent += int(inside.sum())

    def confirmed(self, claimed: Tensor, confirm: Confirm) -> Tensor:
        """[n] bool: the claims `claimed` [n] bool that the referee confirms; forgets the others."""
        where = claimed.nonzero()[:, 0]
        if len(where) == 0:
            return claimed
        items = self.slots.on_device(self.slots.item)[where]
        confirmed = confirm(items, self.image[where])
        self.forget(where[~confirmed])
        return claimed.index_copy(0, where, confirmed)

    def candidates(self, slots: HostArray) -> Candidates:
        """The confirmed successes of these slots [k], with what they had cost."""
        where = self.slots.on_device(slots)
        facts = torch.stack([self.forwards[where], self.gradients[where], self.step[where]])
        forwards, gradients, step = facts.cpu().unbind(0)
        item, restart = (
            torch.from_numpy(column[slots]) for column in (self.slots.item, self.slots.restart)
        )
        return Candidates(
            item=item, image=self.image[where], forwards=forwards, gradients=gradients,
            # Each earlier restart ended in a final check of its last iterate.
            final_checks=restart, step=step, restart=restart,
            distance=torch.full(item.shape, math.inf, dtype=torch.float64),
        )  # fmt: skip

    def set_nearest(self, slots: HostArray, nearest: NearestCandidates) -> None:
        """Records the nearest successes that a final check has found in these slots [k]."""
        where = self.slots.on_device(slots)
        self.image[where] = nearest.image
        self.distance[where] = nearest.distance.to(self.distance)
        self.step[where] = nearest.step.to(self.step)
        self.restart[where] = nearest.restart.to(self.restart)

    def forget(self, where: Tensor) -> None:
        """Forgets the success of the slots `where` [k] int64: new item, or claim refused."""
        self.found[where] = False
        self.distance[where] = math.inf

    def keep(self, where: Tensor) -> None:
        """Keeps only the slots `where` [k] int64."""
        self.found, self.image = self.found[where], self.image[where]
        self.distance, self.step = self.distance[where], self.step[where]
        self.restart = self.restart[where]
        self.forwards, self.gradients = self.forwards[where], self.gradients[where]

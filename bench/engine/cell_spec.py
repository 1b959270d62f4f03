"""The inputs of a cell's evaluation, and the candidates that it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from bench.data.image_rows import CleanImages
from bench.engine.answers import predicted_labels, reaches_goal
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import map_state
from bench.engine.surrogate_iterates import SurrogateIterates
from bench.engine.transfers import to_device
from bench.plugin import Attack
from bench.plugin.losses import margin
from bench.threats.access import Budget
from bench.threats.norms import PerturbationSet, per_row
from bench.threats.threat_model import Goal

Confirm: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(items [n] int64, points [n, ...]) -> [n] bool: the referee's rule finds them broken."""


@dataclass(frozen=True)
class CellSpec:
    """An evaluation cell, resolved to everything that the engine needs to run it.

    An item is one example, or one example with one target class where the threat model has
    several; n is the number of items.
    """

    attack: Attack
    model_access: ModelAccess
    """The model that the attack queries: the defense, or the surrogate of a transfer attack."""
    defense: ModelAccess
    """The model that the final check queries."""
    ball: PerturbationSet
    goal: Goal
    budget: Budget
    x: CleanImages
    """[n, C, H, W] clean images of all items; of large sets rows that are read when needed."""
    y: Tensor
    """[n] int64 labels."""
    target: Tensor
    """[n] int64 declared target classes, -1 without."""
    clean_logits: Tensor
    """[n, K] of the model that the attack queries."""
    reached_on_clean: Tensor
    """[n] bool: the goal is reached on the clean image."""
    seed: int
    slots: int = 256
    noise: SeededNoise | None = None
    """Set for a declared-random defense, which runs in fixed groups without refill."""
    example: Tensor | None = None
    """[n] int64: the example of each item, where restarts are items of their own."""
    restart: Tensor | None = None
    """[n] int64: the restart of each item, where restarts are items of their own."""
    iterates: SurrogateIterates | None = None
    """Iterates of a transfer attack on the same surrogate; None: they are not kept."""
    heartbeat: Callable[[], None] = lambda: None
    """Called after every step, because the first candidates may come late."""

    def reaches_goal(self, answer: Tensor, items: Tensor) -> Tensor:
        """[k] bool: answers [k, K] of the defense for the items [k] reach the goal."""
        targeted, rejects = self.goal.kind == "targeted", self.defense.rejects
        known = (self.target if targeted else self.y)[items]
        label = predicted_labels(answer, rejects=rejects)
        return reaches_goal(label, known, targeted=targeted, rejects=rejects)

    def noise_groups(self, items: Iterable[int]) -> Iterator[range]:
        """The items of each noise group that holds one of `items`, whose random state is begun.

        A group runs whole, because the draws of a declared-random defense belong to all of it.
        """
        assert self.noise is not None
        rows = self.noise.rows
        for group in sorted({item // rows for item in items}):
            self.noise.begin(group)
            yield range(group * rows, min((group + 1) * rows, len(self.x)))

    def largest_margin_first(self) -> list[int]:
        """All items, in order of their margin on the clean image, the largest first."""
        toward = self.target if self.goal.kind == "targeted" else self.y
        away = margin(self.clean_logits, toward)
        firm = away if self.goal.kind == "targeted" else -away
        order: list[int] = firm.argsort(descending=True, stable=True).tolist()
        return order


class Candidates(NamedTuple):
    """One candidate for each finished item, for the referee; [n] each, except the images."""

    item: Tensor
    """[n] int64, as are the other numbers."""
    image: Tensor
    """[n, ...]: the point of the claimed success, else of the last iterate; the image itself in a
    norm ball."""
    forwards: Tensor
    """[n]: queries."""
    gradients: Tensor
    """[n]: gradient evaluations."""
    final_checks: Tensor
    """[n]: queries made by the final check, which the attack is not charged for."""
    step: Tensor
    """[n]: step of the claimed success; -1 without a claim."""
    restart: Tensor
    """[n]: restart of the claimed success; -1 without a claim."""
    distance: Tensor
    """[n] float64: of the nearest success outside the ball where nothing is claimed, or inf."""

    @classmethod
    def of_clean_images(cls, spec: CellSpec, items: Sequence[int]) -> Candidates:
        """Items whose goal is reached on the clean image: broken at no cost."""
        item = torch.tensor(items, dtype=torch.int64)
        zero = torch.zeros_like(item)
        image = spec.ball.start(spec.x[to_device(item, spec.x.device)])
        return cls(item, image, zero, zero, zero, zero, zero, zero.double() + torch.inf)


class NearestCandidates(NamedTuple):
    """The nearest success of each row of an attack that minimises its perturbation; [m] each."""

    image: Tensor
    """[m, ...], as are all points."""
    distance: Tensor
    """[m] float64; infinite without a success."""
    step: Tensor
    restart: Tensor


class EndedRestarts(NamedTuple):
    """Restarts that ended without a success and wait for the final check; [m] each."""

    item: Tensor
    restart: Tensor
    final: Tensor
    """[m] bool: the item has no later restart."""
    image: Tensor
    """[m, ...]: the last iterate."""
    forwards: Tensor
    gradients: Tensor
    step: Tensor
    nearest_image: Tensor
    """[m, ...]: the nearest success before it, where the attack minimises."""
    nearest_distance: Tensor
    """[m] float64: of that success; infinite without any."""
    nearest_step: Tensor
    nearest_restart: Tensor

    def nearest(self, won: Tensor, distance: Tensor) -> NearestCandidates:
        """The nearer of the last iterate, where it succeeded, and the nearest success before it.

        Args:
            won: [m] bool, the last iterate succeeded.
            distance: [m] float64, of the last iterate.

        Returns:
            One success for each row; the last iterate at step -1 where there is none.
        """
        last = won & (distance < self.nearest_distance)
        none = self.nearest_distance.isinf() & ~last
        shown = per_row((last | none).to(self.image.device), self.image)
        return NearestCandidates(
            torch.where(shown, self.image, self.nearest_image),
            torch.where(last, distance, self.nearest_distance),
            torch.where(last, self.step, self.nearest_step.masked_fill(none, -1)),
            torch.where(last, self.restart, self.nearest_restart.masked_fill(none, -1)),
        )


class DeferredRestarts(NamedTuple):
    """Restarts that have made their last step, as the device knows them; [m] each."""

    item: Tensor
    """[m] int64 on the host, as are `restart`, `step` and `final`."""
    restart: Tensor
    step: Tensor
    final: Tensor
    """[m] bool: the item has no later restart."""
    image: Tensor
    """[m, ...]: the last iterate."""
    claimed: Tensor
    """[m] bool: one of the restart's queries succeeded."""
    claim: Tensor
    """[m, ...]: that query, else the last iterate."""
    counts: Tensor
    """[m, 5] int64: forwards and gradients at the end; forwards, gradients and step of the claim.
    """

    @property
    def query(self) -> Tensor:
        """[m, ...]: the claim, or else the last iterate, which gets its final check."""
        return torch.where(per_row(self.claimed, self.image), self.claim, self.image)


Columns = TypeVar("Columns", Candidates, NearestCandidates, EndedRestarts, DeferredRestarts)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, one part after another."""
    if len(parts) == 1:
        return parts[0]
    whole: Columns = map_state(lambda *columns: torch.cat(columns), *parts)
    return whole


def select_rows(columns: Columns, rows: Tensor) -> Columns:
    """The rows `rows`, [k] int64 or [n] bool, of every column."""
    if rows.dtype == torch.bool and rows.device.type == "cpu":
        rows = rows.nonzero()[:, 0]  # a mask on a device would make the host wait
    part: Columns = map_state(lambda column: column[to_device(rows, column.device)], columns)
    return part

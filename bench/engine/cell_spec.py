"""What goes into a cell and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from bench.engine.answers import predicted_labels, reaches_goal
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import map_state
from bench.plugin import Attack
from bench.plugin.losses import margin
from bench.threats.access import Budget
from bench.threats.norms import PerturbationSet, per_row
from bench.threats.threat_model import Goal

NOISE_GROUP = 64  # rows of a declared-random defense that share one random state

Confirm: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(items [n] int64, images [n, C, H, W]) -> [n] bool: does the referee's rule call these broken?"""


@dataclass(frozen=True)
class CellSpec:
    """One cell, resolved: everything the engine needs to play it."""

    attack: Attack
    model_access: ModelAccess
    """What the attack asks: the defense, or the source of a transfer attack."""
    defense: ModelAccess
    """What the last looks ask."""
    ball: PerturbationSet
    goal: Goal
    budget: Budget
    x: Tensor
    """[n, C, H, W] clean images of all items."""
    y: Tensor
    target: Tensor
    """[n] declared targets, -1 without."""
    clean_logits: Tensor
    """[n, K] clean logits of the model that the attack asks."""
    reached_on_clean: Tensor
    """[n] bool: the goal is reached on the clean image."""
    seed: int
    slots: int = 256
    noise: SeededNoise | None = None
    """Set for a declared-random defense: played in fixed groups without refill."""
    example: Tensor | None = None
    """[n] which example each item is, where its runs are items of their own."""
    restart: Tensor | None = None
    """[n] and which run of it."""
    heartbeat: Callable[[], None] = lambda: None
    """Called every few steps: much may be played before the first item is handed on."""

    def reaches_goal(self, answer: Tensor, items: Tensor) -> Tensor:
        """[n] bool: the defense's whole answers for these items [n] reach the goal of the board."""
        targeted, rejects = self.goal.kind == "targeted", self.defense.rejects
        known = (self.target if targeted else self.y)[items]
        label = predicted_labels(answer, rejects=rejects)
        return reaches_goal(label, known, targeted=targeted, rejects=rejects)

    def largest_margin_first(self) -> list[int]:
        """All items, those that are farthest from the goal on the clean image first."""
        toward = self.target if self.goal.kind == "targeted" else self.y
        away = margin(self.clean_logits, toward)
        firm = away if self.goal.kind == "targeted" else -away
        order: list[int] = firm.argsort(descending=True, stable=True).tolist()
        return order


class Candidates(NamedTuple):
    """Finished items with what the attack brings to the referee: [n] each, but for the images."""

    item: Tensor
    """int64, as the other numbers."""
    image: Tensor
    """[n, C, H, W]: the claimed success, else the last iterate."""
    forwards: Tensor
    gradients: Tensor
    final_checks: Tensor
    step: Tensor
    """Of the claimed success; -1 without a claim."""
    restart: Tensor
    distance: Tensor
    """float64: of the nearest success outside the ball, where nothing is claimed; else infinite."""

    @classmethod
    def of_clean_images(cls, game: CellSpec, items: Sequence[int]) -> Candidates:
        """These items, their goal reached on the clean image: broken at no cost."""
        item = torch.tensor(items, dtype=torch.int64)
        zero = torch.zeros_like(item)
        image = game.x[item.to(game.x.device)]
        return cls(item, image, zero, zero, zero, zero, zero, zero.double() + torch.inf)


class NearestCandidates(NamedTuple):
    """The nearest successes of rows, where the attack minimises: [m] each, but for the images."""

    image: Tensor
    """[m, C, H, W]."""
    distance: Tensor
    """float64; infinite without any."""
    step: Tensor
    restart: Tensor


class EndedRestarts(NamedTuple):
    """Runs that ended unbroken: they wait for the look at their last iterates. [m] each."""

    item: Tensor
    restart: Tensor
    final: Tensor
    """bool: the item has no run after this one."""
    image: Tensor
    """[m, C, H, W]: the last iterate."""
    forwards: Tensor
    gradients: Tensor
    step: Tensor
    nearest_image: Tensor
    """[m, C, H, W]: the nearest success before it, where the attack minimises."""
    nearest_distance: Tensor
    """float64: of that; infinite without any."""
    nearest_step: Tensor
    nearest_restart: Tensor

    def nearest(self, won: Tensor, distance: Tensor) -> NearestCandidates:
        """The better of the last iterate, where it has `won` [m] bool, and what was before it.

        Without either it is the last iterate, of step -1.
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


Columns = TypeVar("Columns", Candidates, NearestCandidates, EndedRestarts)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, one part after another."""
    if len(parts) == 1:
        return parts[0]
    whole: Columns = map_state(lambda *columns: torch.cat(columns), *parts)
    return whole


def select_rows(columns: Columns, rows: Tensor) -> Columns:
    """These rows, [k] int64 or [n] bool, of every column."""
    part: Columns = map_state(lambda column: column[rows.to(column.device)], columns)
    return part

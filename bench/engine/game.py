"""What goes into a cell and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor

from bench.kit import margin
from bench.plugin import Attack
from bench.records import Budget
from bench.target import Noise, Target, named, reaches
from bench.threat import Goal, PerturbationSet

GROUP = 64  # rows of a declared-random defense that share one random state

Confirm: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(items [n] int64, images [n, C, H, W]) -> [n] bool: does the referee's rule call these broken?"""


@dataclass(frozen=True)
class Game:
    """One cell, resolved: everything the engine needs to play it."""

    attack: Attack
    door: Target
    """What the attack asks: the defense, or the source of a transfer attack."""
    defense: Target
    """What the last looks ask."""
    ball: PerturbationSet
    goal: Goal
    budget: Budget
    x: Tensor
    """[n, C, H, W] clean images of all items."""
    y: Tensor
    aim: Tensor
    """[n] declared targets, -1 without."""
    clean: Tensor
    """[n, K] clean logits of the model that the attack asks."""
    lost: Tensor
    """[n] bool: the goal is reached on the clean image."""
    seed: int
    slots: int = 256
    noise: Noise | None = None
    """Set for a declared-random defense: played in fixed groups without refill."""
    example: Tensor | None = None
    """[n] which example each item is, where its runs are items of their own."""
    run: Tensor | None = None
    """[n] and which run of it."""
    beat: Callable[[], None] = lambda: None
    """Called every few steps: much may be played before the first item is handed on."""

    def reached(self, answer: Tensor, items: Tensor) -> Tensor:
        """[n] bool: the defense's whole answers for these items [n] reach the goal of the board."""
        targeted, rejects = self.goal.kind == "targeted", self.defense.rejects
        known = (self.aim if targeted else self.y)[items]
        label = named(answer, rejects=rejects)
        return reaches(label, known, targeted=targeted, rejects=rejects)

    def firmest(self) -> list[int]:
        """All items, those that are farthest from the goal on the clean image first."""
        toward = self.aim if self.goal.kind == "targeted" else self.y
        away = margin(self.clean, toward)
        firm = away if self.goal.kind == "targeted" else -away
        order: list[int] = firm.argsort(descending=True, stable=True).tolist()
        return order


class Attempts(NamedTuple):
    """Finished items with what the attack brings to the referee."""

    item: Tensor
    """[n] int64."""
    image: Tensor
    """[n, C, H, W]: the claimed success, else the last iterate."""
    forwards: Tensor
    gradients: Tensor
    looks: Tensor
    step: Tensor
    """Of the claimed success; -1 without a claim."""
    run: Tensor


class Nearest(NamedTuple):
    """The nearest success a row has found, where the attack minimises."""

    image: Tensor
    distance: float
    """Infinite without any."""
    step: int
    run: int


class Ended(NamedTuple):
    """A run that ended unbroken: it waits for the look at its last iterate."""

    item: int
    run: int
    final: bool
    image: Tensor
    forwards: int
    gradients: int
    step: int
    nearest: Nearest | None


class Settled(NamedTuple):
    """An item whose verdict cannot change any more."""

    item: int
    image: Tensor
    forwards: int
    gradients: int
    looks: int
    step: int
    run: int
    distance: float = math.inf
    """Of the nearest success outside the ball, where nothing is claimed."""

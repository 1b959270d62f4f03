"""What a side brings home, judged by one referee: the same rules for ours and for the peers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.outcomes import Verdict
from bench.engine.cell_spec import Candidates
from bench.engine.model_access import freeze
from bench.plugin import Goal, PerturbationSet
from bench.referee.fresh_model import FreshModel
from bench.referee.referee import Referee
from tests.benchmarks.models import World


class Outcome(NamedTuple):
    """One run of one side over a world's examples."""

    broken: Tensor
    """[n] bool, verified in float32 in the ball; a clean mistake counts as broken."""
    distance: Tensor
    """[n] float64 from the clean image."""
    image: Tensor
    seconds: float
    """Of the attack; the judging is the same for both sides and is left out."""
    forwards: float
    """An example, as the referee's denominator has it."""
    gradients: float
    calls: int
    """Of the model, whatever the batch."""

    @property
    def robust(self) -> float:
        """The share of all examples that was never broken."""
        return 1 - float(self.broken.double().mean())


@dataclass
class Counter:
    """What a model was asked, seen from outside."""

    calls: int = 0
    forwards: int = 0
    gradients: int = 0


@contextmanager
def counted(model: nn.Module, *, gradients: bool = True) -> Iterator[Counter]:
    """Count calls, images and, if asked for, gradients of images that go through this model."""
    counter = Counter()

    def backward(gradient: Tensor) -> None:
        counter.gradients += len(gradient)

    def forward(module: nn.Module, images: object, logits: Tensor) -> None:
        counter.calls += 1
        counter.forwards += len(logits)
        if gradients and logits.requires_grad:
            logits.register_hook(backward)  # type: ignore[no-untyped-call]

    handle = model.register_forward_hook(forward)
    try:
        yield counter
    finally:
        handle.remove()


def referee(world: World, ball: PerturbationSet, goal: Goal, *, minimises: bool) -> Referee:
    """The rules for this world, with a copy of its model that no attack has seen."""
    court = FreshModel(freeze(copy.deepcopy(world.model)))
    none = torch.full_like(world.y, -1)
    return Referee(court, ball, goal, world.x, world.y, none, minimises=minimises)


def judged(rules: Referee, image: Tensor) -> tuple[Tensor, Tensor]:
    """Broken [n] bool and distance [n] of one image for each example, in order."""
    zero = torch.zeros(len(image), dtype=torch.int64)
    item = torch.arange(len(image))
    attempts = Candidates(item, image, zero, zero, zero, zero, zero, zero + torch.inf)
    outcomes = rules.judge(attempts)
    broken = torch.from_numpy(outcomes.verdict == Verdict.BROKEN)
    distance = torch.from_numpy(outcomes.distance)
    return broken.to(image.device), distance.to(image.device)

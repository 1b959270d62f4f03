"""The result of one run, verified by the same referee for this project and for the peers."""

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
from tests.benchmarks.cases import Case


class RunResult(NamedTuple):
    """One run of one implementation over the examples of a case."""

    broken: Tensor
    """[n] bool, verified by the referee; a clean mistake counts as broken."""
    distance: Tensor
    """[n] float64, the distance from the clean image."""
    image: Tensor
    """[n, C, H, W]."""
    seconds: float
    """Time of the attack, without the verification."""
    forwards: float
    """Mean over all examples, as is `gradients`."""
    gradients: float
    calls: int
    """Calls of the model, whatever the batch size."""

    @property
    def robust(self) -> float:
        """Robust accuracy: the share of all examples that are not broken."""
        return 1 - float(self.broken.double().mean())


@dataclass
class Counter:
    """Counts from hooks on a model: calls, images forward, gradients of images."""

    calls: int = 0
    forwards: int = 0
    gradients: int = 0


@contextmanager
def counted(model: nn.Module, *, gradients: bool = True) -> Iterator[Counter]:
    """Count calls, images and, on request, image gradients while the context is open."""
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


def referee(case: Case, ball: PerturbationSet, goal: Goal, *, minimises: bool) -> Referee:
    """A referee for this case on a fresh copy of its model."""
    fresh = FreshModel(freeze(copy.deepcopy(case.model)))
    none = torch.full_like(case.y, -1)
    return Referee(fresh, ball, goal, case.x, case.y, none, minimises=minimises)


def verified_images(rules: Referee, image: Tensor) -> tuple[Tensor, Tensor]:
    """Broken [n] bool and distance [n] float64 of images [n, C, H, W], one per example."""
    zero = torch.zeros(len(image), dtype=torch.int64)
    item = torch.arange(len(image))
    attempts = Candidates(item, image, zero, zero, zero, zero, zero, zero + torch.inf)
    outcomes = rules.judge(attempts)
    broken = torch.from_numpy(outcomes.verdict == Verdict.BROKEN)
    distance = torch.from_numpy(outcomes.distance)
    return broken.to(image.device), distance.to(image.device)

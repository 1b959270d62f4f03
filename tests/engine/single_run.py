"""Helper: runs one attack against one model on the digits and judges the candidates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.outcomes import Outcomes
from bench.data.image_rows import CleanImages
from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.runner import run_attack
from bench.plugin import Attack, Traits
from bench.referee.fresh_model import FreshAnswers, FreshModel
from bench.referee.referee import Referee, goal_reached, judge
from bench.threats.access import Budget
from bench.threats.norms import Linf, PerturbationSet
from bench.threats.threat_model import Goal
from tests.fixtures.known_models import UNTARGETED, digits, small_cnn

COUNT = 150
LINF = Linf(Fraction(51, 255))
NEAREST = Goal("nearest")
FREE = Budget()


class RunResult(tuple[Outcomes, Tensor, int]):
    """Outcomes and images [n, C, H, W] in item order, and the number of model calls."""

    outcomes = property(lambda self: self[0])
    images = property(lambda self: self[1])
    calls = property(lambda self: self[2])


@dataclass(frozen=True)
class SingleRun:
    """One attack against one model under one threat model, on the first `count` digits."""

    attack: Attack
    ball: PerturbationSet = LINF
    goal: Goal = UNTARGETED
    model: nn.Module | None = None
    source: nn.Module | None = None
    random: bool = False
    budget: Budget = FREE
    count: int = COUNT
    noise_rows: int = 64
    """Rows of a noise group of a random model."""

    def spec(self, slots: int = 64) -> CellSpec:
        model = self.model or small_cnn()
        x, y = digits(self.count)
        target = (y + 1) % 10 if self.goal.kind == "targeted" else torch.full_like(y, -1)
        noise = self.noise("play")
        clean = self.clean(x, self.noise("clean"))
        defense = ModelAccess(model, noise=noise)
        return CellSpec(
            attack=self.attack, model_access=ModelAccess(self.source) if self.source else defense,
            defense=defense, ball=self.ball, goal=self.goal, budget=self.budget,
            x=x, y=y, target=target, clean_logits=clean.logits,
            reached_on_clean=goal_reached(clean.votes, y, target, self.goal),
            seed=0, slots=slots, noise=noise,
        )  # fmt: skip

    def noise(self, role: str) -> SeededNoise | None:
        if not self.random:
            return None
        return SeededNoise(0, role, torch.device("cpu"), rows=self.noise_rows)

    def clean(self, x: CleanImages, noise: SeededNoise | None) -> FreshAnswers:
        """The answers of a copy of the model to clean images."""
        fresh_model = FreshModel(copy.deepcopy(self.model or small_cnn()), noise=noise)
        return fresh_model.answer(x, range(-(-len(x) // fresh_model.rows)))

    def referee(self, spec: CellSpec) -> Referee:
        fresh_model = FreshModel(
            copy.deepcopy(self.model or small_cnn()), noise=self.noise("judge")
        )
        minimises = Traits.of(self.attack).minimises
        confirmation = self.noise("confirm")
        rules = (self.ball, self.goal, spec.x, spec.y, spec.target)
        return Referee(fresh_model, *rules, minimises=minimises, confirmation_noise=confirmation)

    def run(self, slots: int = 64, cuts: Sequence[int] = (), **options: Any) -> RunResult:
        """Runs to the end; at each cut the engine is replaced by a new one after so many chunks."""
        return replace(self, model=self.model or small_cnn())._run(slots, cuts, **options)

    def _run(self, slots: int, cuts: Sequence[int], **options: Any) -> RunResult:
        spec = self.spec(slots)
        clean = self.clean(spec.x, self.noise("x"))
        candidates: list[Candidates] = []
        calls = [0]
        module = spec.model_access.module

        def count(called: nn.Module, *_: object) -> None:
            calls[0] += called is module  # and none of a copy, such as the referee's

        hook = module.register_forward_hook(count)
        for cut in [*cuts, None]:
            done = [item for part in candidates for item in part.item.tolist()]
            referee, chunks = self.referee(spec), range(cut or 10**9)
            stream = run_attack(self.spec(slots), referee.confirm, finished=done, **options)
            candidates += [part for _, part in zip(chunks, stream, strict=False)]
        hook.remove()
        judged = list(judge(candidates, self.referee(spec), clean))
        outcomes = Outcomes.concatenate([chunk.outcomes for chunk in judged])
        item = torch.cat([part.item for part in candidates])
        images = torch.cat([part.image for part in candidates])[item.argsort()]
        return RunResult((outcomes, images, calls[0]))


class NoisyModel(nn.Module):
    """The small CNN behind Gaussian noise from the global generator."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.body, self.sigma = copy.deepcopy(small_cnn()), sigma

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images + self.sigma * torch.randn_like(images))
        return logits


class CountingModel(nn.Module):
    """The small CNN, with a record of the batch size of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rows = copy.deepcopy(small_cnn()), list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        logits: Tensor = self.body(images)
        return logits


def assert_same(one: RunResult, two: RunResult) -> None:
    """Asserts that outcomes and images are identical."""
    for name, first, second in zip(Outcomes._fields, one.outcomes, two.outcomes, strict=True):
        assert np.array_equal(first, second, equal_nan=first.dtype.kind == "f"), name
    assert torch.equal(one.images, two.images)

"""One attack against one model on the digits, and what came of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.outcomes import Outcomes
from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.runner import run_attack
from bench.plugin import Attack, Traits
from bench.referee.fresh_model import FreshModel
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
    """Outcomes and images in item order, and how often the model was called."""

    outcomes = property(lambda self: self[0])
    images = property(lambda self: self[1])
    calls = property(lambda self: self[2])


@dataclass(frozen=True)
class SingleRun:
    """One attack against one model; the rest may be varied."""

    attack: Attack
    ball: PerturbationSet = LINF
    goal: Goal = UNTARGETED
    model: nn.Module | None = None
    source: nn.Module | None = None
    random: bool = False
    budget: Budget = FREE
    count: int = COUNT

    def spec(self, slots: int = 64) -> CellSpec:
        model = self.model or small_cnn()
        x, y = digits(self.count)
        aim = (y + 1) % 10 if self.goal.kind == "targeted" else torch.full_like(y, -1)
        noise = self.noise("play")
        groups = range(-(-len(x) // 64))
        clean = FreshModel(copy.deepcopy(model), noise=self.noise("clean")).answer(x, groups)
        door = ModelAccess(self.source) if self.source else ModelAccess(model, noise=noise)
        return CellSpec(
            attack=self.attack, model_access=door,
        defense=ModelAccess(model, noise=noise), ball=self.ball,
            goal=self.goal, budget=self.budget, x=x, y=y, target=aim, clean_logits=clean.logits,
            reached_on_clean=goal_reached(clean.votes, y, aim, self.goal), seed=0, slots=slots, noise=noise,
        )  # fmt: skip

    def noise(self, role: str) -> SeededNoise | None:
        return SeededNoise(0, role, torch.device("cpu")) if self.random else None

    def referee(self, game: CellSpec) -> Referee:
        court = FreshModel(copy.deepcopy(self.model or small_cnn()), noise=self.noise("judge"))
        minimises = Traits.of(self.attack).minimises
        fresh = self.noise("confirm")
        rules = (self.ball, self.goal, game.x, game.y, game.target)
        return Referee(court, *rules, minimises=minimises, confirmation_noise=fresh)

    def run(self, slots: int = 64, cuts: Sequence[int] = (), **options: Any) -> RunResult:
        """Play to the end; at each cut the engine is thrown away after so many chunks."""
        game = self.spec(slots)
        answer = FreshModel(copy.deepcopy(self.model or small_cnn()), noise=self.noise("x"))
        clean = answer.answer(game.x, range(-(-len(game.x) // 64)))
        attempts: list[Candidates] = []
        calls = [0]
        module = game.model_access.module
        hook = module.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        for cut in [*cuts, None]:
            done = [item for part in attempts for item in part.item.tolist()]
            referee, chunks = self.referee(game), range(cut or 10**9)
            stream = run_attack(self.spec(slots), referee.confirm, finished=done, **options)
            attempts += [part for _, part in zip(chunks, stream, strict=False)]
        hook.remove()
        judged = list(judge(attempts, self.referee(game), clean))
        outcomes = Outcomes.concatenate([chunk.outcomes for chunk in judged])
        item = torch.cat([part.item for part in attempts])
        images = torch.cat([part.image for part in attempts])[item.argsort()]
        return RunResult((outcomes, images, calls[0]))


class NoisyModel(nn.Module):
    """The small network behind noise, which draws from the global generator."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.body, self.sigma = copy.deepcopy(small_cnn()), sigma

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images + self.sigma * torch.randn_like(images))
        return logits


class CountingModel(nn.Module):
    """The small network, with a note of how many rows came each time."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rows = copy.deepcopy(small_cnn()), list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        logits: Tensor = self.body(images)
        return logits


def assert_same(one: RunResult, two: RunResult) -> None:
    for name, first, second in zip(Outcomes._fields, one.outcomes, two.outcomes, strict=True):
        assert np.array_equal(first, second), name
    assert torch.equal(one.images, two.images)

"""Tests of bench.engine.model_access: access levels, randomness and visible answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess, SeededNoise
from bench.plugin import Access, Problem, margin
from tests.engine.single_run import NoisyModel
from tests.fixtures.known_models import digits
from tests.fixtures.rejecting_defenses import (
    rejects_by_second_pixel,
    run_on_grey_images,
)


@dataclass
class RecordsColumns:
    """Makes each kind of query once and records the number of columns."""

    joint: bool = False
    widths: list[int] = field(default_factory=list)

    name = "records-columns"
    needs = Access.GRADIENTS
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        def loss(answer: Tensor, label: Tensor) -> Tensor:
            self.widths.append(answer.shape[1])
            return margin(answer, label)

        self.widths.append(problem.gradient(adv, loss).logits.shape[1])
        own = torch.zeros_like(problem.y)[:, None]
        self.widths.append(problem.jacobian(adv, own).logits.shape[1])
        self.widths.append(problem.logits(adv).shape[1])
        self.widths.append(problem.clean_logits.shape[1])
        assert problem.other_classes.shape[1] == problem.classes - 1 == 1
        assert problem.labels(adv).max() < problem.classes
        return adv


def test_only_a_joint_attack_sees_the_rejection_score() -> None:
    plain, joint = RecordsColumns(), RecordsColumns(joint=True)
    run_on_grey_images(plain, rejects_by_second_pixel(0.5))
    run_on_grey_images(joint, rejects_by_second_pixel(0.5))
    assert plain.widths == [2, 2, 2, 2, 2]
    assert joint.widths == [3, 3, 3, 3, 2]


def test_a_random_defense_draws_new_noise_at_every_call() -> None:
    model = NoisyModel(0.3)
    noise = SeededNoise(0, "play", torch.device("cpu"))
    access = ModelAccess(model, noise=noise)
    x, _ = digits(8)
    noise.begin(0)
    first, second = access.logits(x), access.logits(x)
    noise.begin(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, access.logits(x))
    noise.begin(1)
    assert not torch.equal(first, access.logits(x))

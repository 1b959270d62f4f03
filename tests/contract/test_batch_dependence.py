"""Attacks whose result for an image depends on its batch are found, and honest ones are not."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from bench.contract.batch_dependence import batch_dependence
from bench.plugin import Access, Attack, Finding, Problem, State
from bench.registry.registry import Registry
from plugins.attacks.pgd import PGD
from tests.contract.planted import Climb, gradient


class MeanOfBatch(Climb):
    """Finding 13: the step is divided by the mean gradient of the batch."""

    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        found = gradient(problem, adv)
        return found / found.abs().mean()


class LargestOfBatch(Climb):
    """Only the half of the batch with the largest gradients makes a step."""

    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        size = gradient(problem, adv).flatten(1).norm(dim=1)
        chosen = torch.zeros_like(size)
        chosen[size.topk(len(size) // 2).indices] = 1
        return super().uphill(problem, adv) * chosen[:, None, None, None]


class NoiseOfBatch(Climb):
    """Every image gets the noise of the first one."""

    def start(self, problem: Problem) -> State:
        noise = problem.ball.sample(problem.x, problem) - problem.x
        return problem.ball.project(problem.x + noise[:1], problem.x)


class OneStep(MeanOfBatch):
    steps = 1


class OneHonestStep(Climb):
    steps = 1


class External:
    name = "planted"
    needs = Access.GRADIENTS

    def run(self, problem: Problem) -> Tensor:
        return problem.x


@pytest.mark.parametrize("attack", [MeanOfBatch, LargestOfBatch, NoiseOfBatch, OneStep])
def test_an_attack_that_depends_on_its_batch_is_found(
    registry: Registry, attack: type[Climb]
) -> None:
    found = batch_dependence(registry, attack())
    assert found.finding is Finding.WARNING
    assert "depends on the rest of the batch" in found.sentence
    assert "results changed beside" in found.sentence


@pytest.mark.parametrize("attack", [Climb(), OneHonestStep(), PGD()])
def test_an_attack_of_independent_rows_passes(registry: Registry, attack: Climb) -> None:
    assert batch_dependence(registry, attack).finding is Finding.PASSED


def test_an_external_attack_is_not_tested(registry: Registry) -> None:
    found = batch_dependence(registry, cast("Attack", External()))
    assert (found.finding, found.sentence[:11]) == (Finding.NOT_TESTED, "Not tested:")

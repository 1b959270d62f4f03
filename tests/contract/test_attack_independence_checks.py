"""Checks of repeatability, independence and side effects fail on attacks made to fail them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.contract.attack_independence_checks import INDEPENDENCE_CHECKS
from bench.contract.check import CheckOutcome
from bench.plugin import Problem, State, cross_entropy
from bench.registry.registry import Registry
from tests.contract.planted import Climb, gradient, run_named_check


class Global(Climb):
    def start(self, problem: Problem) -> State:
        return problem.ball.project(problem.x + 0.1 * torch.randn_like(problem.x), problem.x)


class Batch(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        found = gradient(problem, adv)
        return found / (found.abs().mean() + 1e-9)


class Clock(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return super().uphill(problem, adv) / (1 + problem.t.max())


class WritesInputs(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.clone()

    def step(self, problem: Problem, state: State) -> State:
        problem.x.mul_(0.99)
        return super().step(problem, state)


class InPlace(Climb):
    def step(self, problem: Problem, state: State) -> State:
        state.add_(0.01)
        return super().step(problem, state)


class WritesModel(Climb):
    def step(self, problem: Problem, state: State) -> State:
        problem.required_model_access.module.bias.zero_()  # type: ignore[attr-defined]
        return super().step(problem, state)


class Seeding(Climb):
    def step(self, problem: Problem, state: State) -> State:
        torch.manual_seed(0)
        return super().step(problem, state)


class KeepsState(Climb):
    def __init__(self) -> None:
        self.count = 0

    def step(self, problem: Problem, state: State) -> State:
        self.count += 1
        return super().step(problem, state)


class ReadsMaskedRows(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        even = torch.arange(len(adv)) % 2 == 0
        found = problem.gradient(adv, cross_entropy, even).gradient
        return problem.ball.steepest(found, adv)


class Masked(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        even = torch.arange(len(adv)) % 2 == 0
        found = problem.gradient(adv, cross_entropy, even).gradient
        return problem.ball.steepest(found * even[:, None, None, None], adv)


ATTACKS: list[tuple[str, type[Climb]]] = [
    ("the-same-again", Global),
    ("rows-are-independent", Batch),
    ("late-rows-are-as-good", Clock),
    ("inputs-are-left-alone", WritesInputs),
    ("states-are-left-alone", InPlace),
    ("model-is-left-alone", WritesModel),
    ("global-random-state-is-left-alone", Seeding),
    ("attack-is-left-alone", KeepsState),
    ("masked-rows-are-not-read", ReadsMaskedRows),
]


def test_every_check_has_an_attack_that_fails_it() -> None:
    assert [name for name, _ in ATTACKS] == [check.name for check in INDEPENDENCE_CHECKS]


@pytest.mark.parametrize(("check", "bad"), ATTACKS)
def test_a_check_fails_on_an_attack_made_to_fail_it(
    registry: Registry, check: str, bad: type[Climb]
) -> None:
    result = run_named_check(registry, "attack", bad(), check)
    assert result.outcome is CheckOutcome.FAIL, result.sentence
    assert result.sentence.endswith(".") and "Error: " not in result.sentence


def test_answers_for_the_rows_in_where_may_be_used(registry: Registry) -> None:
    assert (
        run_named_check(registry, "attack", Masked(), "masked-rows-are-not-read").outcome
        is CheckOutcome.PASS
    )

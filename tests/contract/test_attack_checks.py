"""Every check of attacks fails on an attack made to fail it, and passes on a correct one.

Covers bench.contract.attack_fixture too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.contract.check import CheckOutcome
from bench.contract.runner import CHECKS
from bench.plugin import Access, Linf, Problem, State, StopRule, cross_entropy
from bench.registry.registry import Registry
from tests.contract.planted import run_named_check


class Pair(NamedTuple):
    adv: Tensor
    other: Any


class Climb:
    """A correct attack of eight steps; subclasses replace one part by a faulty one."""

    name = "planted"
    needs = Access.GRADIENTS
    steps = 8

    def start(self, problem: Problem) -> State:
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, state: State) -> State:
        uphill = self.uphill(problem, state)
        return self.inside(problem, state + 0.25 * problem.ball.radius * uphill)

    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.steepest(problem.gradient(adv, cross_entropy).gradient, adv)

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.project(adv, problem.x)


def gradient(problem: Problem, adv: Tensor) -> Tensor:
    return problem.gradient(adv, cross_entropy).gradient


class AmericanSpelling(Climb):
    minimizes = True


class PluralName(Climb):
    stop_rules = StopRule.NEVER


class Unprojected(Climb):
    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return adv


class Cube(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.clone()

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return Linf(problem.ball.eps).project(adv, problem.x)

    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return gradient(problem, adv).sign()


class Targetless(Climb):
    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        lost = (problem.target >= 0)[:, None, None, None]
        return torch.where(lost, adv + 9, super().inside(problem, adv))


class Relative(Climb):
    def start(self, problem: Problem) -> State:
        contrast = problem.x.flatten(1).std(1)[:, None, None, None]
        return problem.ball.project(problem.x + 0.01 * problem.x / contrast, problem.x)


class Narrow(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return super().uphill(problem, adv).reshape(-1, 1, 8, 8)


class Divided(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        found = gradient(problem, adv)
        length = found.flatten(1).square().sum(1).sqrt()
        return found / length[:, None, None, None]


class Scaled(Climb):
    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        share = (adv - problem.x) / problem.ball.radius
        return problem.ball.project(problem.x + problem.ball.radius * share, problem.x)


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


class UndeclaredAccess(Climb):
    needs = Access.LABELS


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


class Idle(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.clone()

    def step(self, problem: Problem, state: State) -> State:
        return problem.x.clone()


class Asking(Climb):
    def start(self, problem: Problem) -> State:
        return problem.ball.project(problem.x + gradient(problem, problem.x), problem.x)


class Flattening(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.flatten(1)


class Doubling(Climb):
    def step(self, problem: Problem, state: State) -> State:
        return super().step(problem, state.float()).double()


class Counting(Climb):
    def start(self, problem: Problem) -> State:
        return Pair(problem.x.clone(), torch.tensor(0))

    def step(self, problem: Problem, state: State) -> State:
        return Pair(super().step(problem, state.adv), state.other + 1)


class Untyped(Climb):
    stop_rule = "first success"


class UnknownGoal(Climb):
    goals = ("all",)


class WithoutDone(Climb):
    stop_rule = StopRule.CONVERGENCE


class WrongDone(Climb):
    stop_rule = StopRule.CONVERGENCE

    def done(self, state: State) -> Tensor:
        return torch.tensor(True)


class Nameless(Climb):
    def __init__(self) -> None:
        self.loss = lambda logits, label: logits[:, 0]


class NoRestartForTwoClasses(Climb):
    def restart_count(self, classes: int) -> int:
        return classes - 2


ATTACKS: list[tuple[str, type[Climb]]] = [
    ("declarations-are-typed", Untyped),
    ("declarations-are-typed", UnknownGoal),
    ("declarations-are-typed", WithoutDone),
    ("no-name-is-nearly-one-of-the-contract", AmericanSpelling),
    ("no-name-is-nearly-one-of-the-contract", PluralName),
    ("parameters-have-a-digest", Nameless),
    ("runs-are-counted-from-one", NoRestartForTwoClasses),
    ("start-asks-nothing", Asking),
    ("start-keeps-the-shape", Flattening),
    ("steps-keep-the-shape", Doubling),
    ("state-has-the-rows-first", Counting),
    ("iterates-stay-inside", Unprojected),
    ("every-claimed-set-works", Cube),
    ("every-claimed-goal-works", Targetless),
    ("saturated-images-are-images", Relative),
    ("other-shapes-and-class-counts-work", Narrow),
    ("a-zero-gradient-is-no-crash", Divided),
    ("radius-zero-is-the-clean-image", Scaled),
    ("the-same-again", Global),
    ("rows-are-independent", Batch),
    ("late-rows-are-as-good", Clock),
    ("inputs-are-left-alone", WritesInputs),
    ("states-are-left-alone", InPlace),
    ("model-is-left-alone", WritesModel),
    ("global-random-state-is-left-alone", Seeding),
    ("attack-is-left-alone", KeepsState),
    ("it-asks-only-what-it-declares", UndeclaredAccess),
    ("masked-rows-are-not-read", ReadsMaskedRows),
    ("done-answers-for-each-row", WrongDone),
    ("it-breaks-something", Idle),
]


@pytest.mark.parametrize(("check", "bad"), ATTACKS)
def test_a_check_fails_on_an_attack_made_to_fail_it(
    registry: Registry, check: str, bad: type[Climb]
) -> None:
    result = run_named_check(registry, "attack", bad(), check)
    assert result.outcome is CheckOutcome.FAIL, result.sentence
    assert result.sentence.endswith(".")
    raised = "Error: " in result.sentence
    assert raised == (bad is Narrow), "the check failed for another reason than it was made for"


@pytest.mark.parametrize("check", [check.name for check in CHECKS["attack"]])
def test_a_correct_attack_fails_no_check(registry: Registry, check: str) -> None:
    assert run_named_check(registry, "attack", Climb(), check).outcome is not CheckOutcome.FAIL


def test_answers_for_the_rows_in_where_may_be_used(registry: Registry) -> None:
    assert (
        run_named_check(registry, "attack", Masked(), "masked-rows-are-not-read").outcome
        is CheckOutcome.PASS
    )

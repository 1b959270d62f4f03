"""Every check of attacks fails on an attack made to fail it, and passes on a correct one.

Covers bench.contract.attack_fixture too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.contract.check import CheckOutcome
from bench.contract.runner import CHECKS
from bench.plugin import Access, Attack, Linf, Problem, State, StopRule
from bench.registry.registry import Registry
from plugins.attacks import apgd
from plugins.attacks.bim import BIM
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from tests.contract.planted import Climb, gradient, run_named_check

CE: Any = next(iter(apgd.bench_attacks()))


class Pair(NamedTuple):
    adv: Tensor
    other: Any


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


class UndeclaredAccess(Climb):
    needs = Access.LABELS


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
    ("it-asks-only-what-it-declares", UndeclaredAccess),
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


@pytest.mark.row("RP10")
@pytest.mark.parametrize(
    ("attack", "share"),
    [
        (PGD(steps=10, rate=1 / 30), "20."), (PGD(steps=10, rate=0.1), "70."),
        (PGD(steps=19, rate=0.1), "99."), (BIM(steps=4, rate=0.2), "80."),
        (MarginPGD(steps=3, rate=0.1), ""), (replace(CE, rate=0.01, steps=4), ""),
    ],
)  # fmt: skip
def test_steps_that_cannot_cross_the_set_are_a_warning(
    registry: Registry, attack: Attack, share: str
) -> None:
    result = run_named_check(registry, "attack", attack, "steps-cross-the-set")
    assert result.outcome is CheckOutcome.WARNING
    assert f"after {attack.steps} steps it has made {share}" in result.sentence


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=20, rate=0.1), PGD(steps=2, rate=1.0), PGD(steps=5, rate=0.2, random_start=False),
        BIM(), CE,
    ],
)  # fmt: skip
def test_steps_that_cross_the_set_pass(registry: Registry, attack: Attack) -> None:
    """Without a random start one radius is enough to reach the end."""
    result = run_named_check(registry, "attack", attack, "steps-cross-the-set")
    assert result.outcome is CheckOutcome.PASS


@pytest.mark.parametrize("name", ["fgsm", "random", "deepfool", "square", "boundary"])
def test_crossing_is_not_asked_of_other_attacks(registry: Registry, name: str) -> None:
    attack = registry.attacks[name].value
    result = run_named_check(registry, "attack", attack, "steps-cross-the-set")
    assert result.outcome is CheckOutcome.NOT_APPLICABLE

"""Tests of bench.engine.parallel_restarts: the first restart that succeeds counts."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.engine.runner import run_attack
from bench.plugin import Access, Attack, Problem
from bench.threats.norms import L2, Linf, PerturbationSet
from plugins.attacks.fab import FAB
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from tests.engine.single_run import COUNT, CountingModel, SingleRun, assert_same
from tests.fixtures.known_models import small_cnn


@pytest.mark.parametrize(
    ("attack", "ball"),
    [
        (PGD(steps=6, restarts=4), L2(Fraction(1, 2))),
        (MarginPGD(steps=5), L2(Fraction(1, 2))),
        (FAB("fab-t", True, "", walk=7), L2(Fraction(3, 10))),
    ],
    ids=["restarts", "targets", "nearest success of each restart"],
)
def test_parallel_restarts_give_the_results_of_restarts_in_turn(
    attack: Attack, ball: PerturbationSet
) -> None:
    single = SingleRun(attack, ball, count=40)
    in_turn, mixed, parallel = (single.run(slots) for slots in (32, 64, 512))
    assert_same(in_turn, mixed)
    assert_same(in_turn, parallel)
    assert {-1, 0} < set(in_turn.outcomes.restart.tolist())
    assert parallel.calls < in_turn.calls / 2
    assert mixed.calls < in_turn.calls


def test_an_item_is_yielded_once_its_outcome_is_known() -> None:
    single = SingleRun(PGD(steps=6, restarts=6), Linf(Fraction(1, 10)))
    spec = single.spec(192)
    parts = list(run_attack(spec, single.referee(spec).confirm))
    whole = torch.cat([part.item for part in parts])
    assert whole.sort().values.tolist() == list(range(COUNT))
    assert len([part for part in parts if part.forwards.any()]) > 2


@dataclass(frozen=True)
class FirstRestartSucceeds:
    """Its first restart queries the negative at once; the others query the clean image."""

    name = "first-restart-succeeds"
    needs = Access.SCORES
    steps: int = 40

    def restart_count(self, classes: int) -> int:
        return 8

    def start(self, problem: Problem) -> Tensor:
        return torch.where(problem.restart[:, None, None, None] == 0, 1 - problem.x, problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        problem.logits(adv)
        return adv


def test_restarts_after_a_successful_one_are_cancelled() -> None:
    single = SingleRun(FirstRestartSucceeds(), Linf(Fraction(1)), model=CountingModel(), count=32)
    spec = single.spec(256)
    spec.reached_on_clean[small_cnn()(1 - spec.x[:]).argmax(1) == spec.y] = True
    module = spec.model_access.module
    assert isinstance(module, CountingModel)
    module.rows.clear()
    (parts,) = [
        part for part in run_attack(spec, single.referee(spec).confirm) if part.forwards.any()
    ]
    assert parts.step.tolist() == [0] * len(parts.item)
    assert sum(module.rows) < 2 * 8 * len(
        parts.item
    )  # of 40 steps that each other restart would make


@dataclass(frozen=True)
class LastStepSucceeds:
    """Queries the negative in the last step of the first restart only."""

    name = "last-step-succeeds"
    needs = Access.SCORES
    steps: int = 6

    def restart_count(self, classes: int) -> int:
        return 3

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        now = (problem.restart == 0) & (problem.t == self.steps - 1)
        problem.logits(torch.where(now[:, None, None, None], 1 - problem.x, problem.x))
        return adv


def test_pending_final_checks_of_later_restarts_are_cancelled_too() -> None:
    single = SingleRun(LastStepSucceeds(), Linf(Fraction(1)), count=32)
    spec = single.spec(256)
    spec.reached_on_clean[small_cnn()(1 - spec.x[:]).argmax(1) == spec.y] = True
    parts = list(run_attack(spec, single.referee(spec).confirm))
    attacked = [part for part in parts if part.forwards.any()]
    assert [(set(part.step.tolist()), set(part.restart.tolist())) for part in attacked] == [
        ({5}, {0})
    ]

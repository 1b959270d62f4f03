"""The runs of an item: one after another or side by side, the earliest winner counts."""

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
    ids=["restarts", "rivals", "the nearest of each run"],
)
def test_runs_side_by_side_come_to_what_runs_one_after_another_do(
    attack: Attack, ball: PerturbationSet
) -> None:
    match = SingleRun(attack, ball, count=40)
    alone, together, abreast = (match.run(slots) for slots in (32, 64, 512))
    assert_same(alone, together)
    assert_same(alone, abreast)
    assert {-1, 0} < set(alone.outcomes.run.tolist())
    assert abreast.calls < alone.calls / 2
    assert together.calls < alone.calls


def test_an_item_is_handed_on_when_its_verdict_is_known() -> None:
    match = SingleRun(PGD(steps=6, restarts=6), Linf(Fraction(1, 10)))
    game = match.spec(192)
    parts = list(run_attack(game, match.referee(game).confirm))
    whole = torch.cat([part.item for part in parts])
    assert whole.sort().values.tolist() == list(range(COUNT))
    assert len([part for part in parts if part.forwards.any()]) > 2


@dataclass(frozen=True)
class FirstRunWins:
    """Its first run asks the negative at once; the others ask the clean image, in vain."""

    name = "first-run-wins"
    needs = Access.SCORES
    steps: int = 40

    def restart_count(self, classes: int) -> int:
        return 8

    def start(self, problem: Problem) -> Tensor:
        return torch.where(problem.restart[:, None, None, None] == 0, 1 - problem.x, problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        problem.logits(adv)
        return adv


def test_a_run_that_has_lost_the_race_is_let_go() -> None:
    match = SingleRun(FirstRunWins(), Linf(Fraction(1)), model=CountingModel(), count=32)
    game = match.spec(256)
    game.reached_on_clean[small_cnn()(1 - game.x).argmax(1) == game.y] = True
    module = game.model_access.module
    assert isinstance(module, CountingModel)
    module.rows.clear()
    (parts,) = [
        part for part in run_attack(game, match.referee(game).confirm) if part.forwards.any()
    ]
    assert parts.step.tolist() == [0] * len(parts.item)
    assert sum(module.rows) < 2 * 8 * len(parts.item)  # of 40 steps that the other runs would make


@dataclass(frozen=True)
class LastStepWins:
    """Only the last question of the first run is the negative."""

    name = "last-step-wins"
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


def test_runs_that_wait_for_their_look_when_an_earlier_one_wins_are_let_go_too() -> None:
    match = SingleRun(LastStepWins(), Linf(Fraction(1)), count=32)
    game = match.spec(256)
    game.reached_on_clean[small_cnn()(1 - game.x).argmax(1) == game.y] = True
    parts = list(run_attack(game, match.referee(game).confirm))
    played = [part for part in parts if part.forwards.any()]
    assert [(set(part.step.tolist()), set(part.restart.tolist())) for part in played] == [
        ({5}, {0})
    ]

"""Questions asked ahead: fewer calls, and nothing else is different."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core.errors import PluginError
from bench.core.outcomes import Verdict
from bench.engine.runner import run_attack
from bench.engine.speculative import SpeculativeQueries
from bench.plugin import Access, Problem, margin
from bench.threats.access import Budget
from bench.threats.norms import L2, Linf, PerturbationSet
from plugins.attacks.square import Square, State
from plugins.attacks.square_l2_l1 import SquareL2L1
from tests.engine.single_run import LINF, NoisyModel, SingleRun, assert_same


@dataclass(frozen=True)
class Plodding:
    """The same attack, one question at a time."""

    attack: Any

    def __getattr__(self, name: str) -> Any:
        if name == "stays":
            raise AttributeError(name)
        return getattr(self.attack, name)


each_search = pytest.mark.parametrize(
    ("attack", "ball"),
    [(Square(steps=150), LINF), (SquareL2L1("square-l2", 2, steps=100), L2(Fraction(1)))],
    ids=["Linf", "L2"],
)


class Wanderer:
    """Asks random points of the ball and keeps none: only a success ends a row."""

    name, needs, steps = "wanderer", Access.SCORES, 60

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        problem.logits(problem.ball.sample(problem.x, problem))
        return adv

    def stays(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.ones(len(before), dtype=torch.bool)


def test_a_success_ends_a_row_that_nothing_else_changes() -> None:
    ahead, alone = (SingleRun(a, Linf(Fraction(1, 2))) for a in (Wanderer(), Plodding(Wanderer())))
    assert_same(ahead.run(64), alone.run(64))
    assert len(set(ahead.run(64).outcomes.step.tolist())) > 10


@each_search
@pytest.mark.parametrize("slots", [32, 160, 512])
def test_one_by_one_and_ahead_end_alike(attack: Any, ball: PerturbationSet, slots: int) -> None:
    ahead = SingleRun(attack, ball).run(slots)
    alone = SingleRun(Plodding(attack), ball).run(slots)
    assert_same(ahead, alone)
    assert ahead.calls < (0.95 if slots == 32 else 0.8) * alone.calls
    assert len(set(ahead.outcomes.step.tolist())) > 10


def test_survivors_need_few_calls_and_pay_for_each_question() -> None:
    match = SingleRun(Square(steps=400), Linf(Fraction(1, 20)), count=20)
    wide, narrow = match.run(256), match.run(32)
    survived = wide.outcomes.verdict == Verdict.ROBUST
    assert survived.sum() > 5
    assert (wide.outcomes.forwards[survived] == 400).all()
    assert wide.calls < 0.6 * narrow.calls < 0.6 * 400


@pytest.mark.parametrize(("pixels", "batches"), [(8, 16), (512, 1), (1024, 1)])
def test_a_leap_is_of_few_batches_and_of_one_where_images_are_large(
    pixels: int, batches: int
) -> None:
    game = replace(SingleRun(Square()).spec(64), x=torch.zeros(1, 3, pixels, pixels))
    ahead = SpeculativeQueries(game)
    ahead.changed_share = 1e-6
    assert ahead.batch_rows(20, 32) == batches * 64


def test_a_refused_claim_goes_on_alike() -> None:
    attempts = []
    for attack in (Square(steps=60), Plodding(Square(steps=60))):
        game = SingleRun(attack).spec(512)
        parts = list(run_attack(game, lambda items, images: items % 3 == 0))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = columns[0].argsort()
        attempts.append([column[order] for column in columns])
    assert all(torch.equal(one, two) for one, two in zip(*attempts, strict=True))


@pytest.mark.parametrize(
    "match",
    [
        SingleRun(Square(steps=60), budget=Budget(queries=40)),
        SingleRun(Square(steps=20), model=NoisyModel(0.05), random=True, count=64),
    ],
    ids=["with a budget", "a random defense"],
)
def test_where_more_would_be_asked_than_was_paid_each_question_is_alone(match: SingleRun) -> None:
    plodding = replace(match, attack=Plodding(match.attack))
    assert match.run(128).calls == plodding.run(128).calls


class Twice(Square):
    """Declares that a step may change nothing, and asks two questions in each."""

    def step(self, problem: Problem, state: Any) -> Any:
        after = super().step(problem, state)
        margin(problem.logits(after.adv), problem.y)
        return after


def test_an_attack_that_asks_twice_in_a_step_is_told() -> None:
    with pytest.raises(PluginError, match="made 2 queries in a step"):
        SingleRun(Twice(steps=60), LINF, count=20).run(64)


def test_an_answer_that_is_no_number_is_no_standstill() -> None:
    image = torch.zeros(2, 1, 2, 2)
    state = State(image, torch.tensor([0.0, torch.nan]), image, image)
    assert Square().stays(state, state).tolist() == [True, False]

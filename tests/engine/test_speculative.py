"""Tests of bench.engine.speculative: fewer model calls and identical results."""

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
class WithoutSpeculation:
    """The same attack, one query at a time."""

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


class RandomProposals:
    """Queries random points of the ball and keeps its image: only a success ends a row."""

    name, needs, steps = "random-proposals", Access.SCORES, 60

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        problem.logits(problem.ball.sample(problem.x, problem))
        return adv

    def stays(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.ones(len(before), dtype=torch.bool)


def test_a_success_ends_a_row_whose_state_never_changes() -> None:
    speculative, single_queries = (
        SingleRun(a, Linf(Fraction(1, 2)))
        for a in (RandomProposals(), WithoutSpeculation(RandomProposals()))
    )
    assert_same(speculative.run(64), single_queries.run(64))
    assert len(set(speculative.run(64).outcomes.step.tolist())) > 10


@each_search
@pytest.mark.parametrize("slots", [32, 160, 512])
def test_speculative_queries_give_the_results_of_single_queries(
    attack: Any, ball: PerturbationSet, slots: int
) -> None:
    speculative = SingleRun(attack, ball).run(slots)
    single_queries = SingleRun(WithoutSpeculation(attack), ball).run(slots)
    assert_same(speculative, single_queries)
    assert speculative.calls < (0.95 if slots == 32 else 0.8) * single_queries.calls
    assert len(set(speculative.outcomes.step.tolist())) > 10


def test_unbroken_rows_need_few_calls_and_are_charged_for_each_query() -> None:
    single = SingleRun(Square(steps=400), Linf(Fraction(1, 20)), count=20)
    wide, narrow = single.run(256), single.run(32)
    survived = wide.outcomes.verdict == Verdict.ROBUST
    assert survived.sum() > 5
    assert (wide.outcomes.forwards[survived] == 400).all()
    assert wide.calls < 0.6 * narrow.calls < 0.6 * 400


@pytest.mark.parametrize(("pixels", "batches"), [(8, 16), (512, 1), (1024, 1)])
def test_a_speculative_batch_is_limited_by_batches_and_by_pixels(pixels: int, batches: int) -> None:
    spec = replace(SingleRun(Square()).spec(64), x=torch.zeros(1, 3, pixels, pixels))
    speculative = SpeculativeQueries(spec)
    speculative.changed_share = 1e-6
    assert speculative.batch_rows(20, 32) == batches * 64


def test_a_refused_candidate_continues_as_without_speculation() -> None:
    candidates = []
    for attack in (Square(steps=60), WithoutSpeculation(Square(steps=60))):
        spec = SingleRun(attack).spec(512)
        parts = list(run_attack(spec, lambda items, images: items % 3 == 0))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = columns[0].argsort()
        candidates.append([column[order] for column in columns])
    assert all(torch.equal(one, two) for one, two in zip(*candidates, strict=True))


@pytest.mark.parametrize(
    "single",
    [
        SingleRun(Square(steps=60), budget=Budget(queries=40)),
        SingleRun(Square(steps=20), model=NoisyModel(0.05), random=True, count=64),
    ],
    ids=["with a budget", "a random defense"],
)
def test_budgets_and_random_defenses_exclude_speculative_queries(single: SingleRun) -> None:
    without = replace(single, attack=WithoutSpeculation(single.attack))
    assert single.run(128).calls == without.run(128).calls


class TwoQueries(Square):
    """Defines `stays`, and makes two queries in each step."""

    def step(self, problem: Problem, state: Any) -> Any:
        after = super().step(problem, state)
        margin(problem.logits(after.adv), problem.y)
        return after


def test_an_attack_with_two_queries_in_a_step_is_refused() -> None:
    with pytest.raises(PluginError, match="made 2 queries in a step"):
        SingleRun(TwoQueries(steps=60), LINF, count=20).run(64)


def test_a_nan_loss_does_not_count_as_unchanged() -> None:
    image = torch.zeros(2, 1, 2, 2)
    state = State(image, torch.tensor([0.0, torch.nan]), image, image)
    assert Square().stays(state, state).tolist() == [True, False]

"""Tests of bench.engine.ledger: each row is charged for its own queries, within its budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import Verdict
from bench.engine.cell_spec import CellSpec
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BATCH_UNIT, BatchProblem, pad_rows
from bench.engine.runner import run_attack
from bench.plugin import Access, Attack, Problem, margin
from bench.threats.access import Budget
from bench.threats.norms import L2, Linf, PerturbationSet
from plugins.attacks.boundary import Boundary
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.pgd import PGD
from tests.engine.single_run import COUNT, SingleRun
from tests.fixtures.known_models import digits, small_cnn


class AlwaysRight(nn.Module):
    """Returns the label of the nearest digit, with a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = digits(COUNT)
        near = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        flat = images.flatten(1).mean(1, keepdim=True)
        return nn.functional.one_hot(y[near], 10).float() * (5 + flat)


def add(rows: dict[str, int], name: str, tensor: Any) -> None:
    rows[name] += len(tensor)


@pytest.mark.row("G12")
def test_counts_equal_those_of_an_independent_hook() -> None:
    """32 rows that are never broken fill every slot, so every forward is charged to a row."""
    rows = {"forward": 0, "backward": 0}
    model = AlwaysRight()
    single = SingleRun(
        PGD(steps=7, restarts=2), Linf(Fraction(1, 100)), model=model, count=BATCH_UNIT
    )
    spec = single.spec(BATCH_UNIT)
    model.register_forward_hook(lambda _, __, out: add(rows, "forward", out))
    model.register_full_backward_hook(lambda _, __, out: add(rows, "backward", *out))
    parts = list(run_attack(spec, single.referee(spec).confirm))
    forwards = sum(int(part.forwards.sum()) for part in parts)
    gradients = sum(int(part.gradients.sum()) for part in parts)
    final_checks = sum(int(part.final_checks.sum()) for part in parts)
    assert rows == {"forward": forwards + final_checks, "backward": gradients}
    assert (forwards, gradients, final_checks) == (BATCH_UNIT * 14, BATCH_UNIT * 14, BATCH_UNIT * 2)


@pytest.mark.parametrize(
    ("attack", "ball", "budget"),
    [
        (PGD(steps=40, restarts=5), Linf(Fraction(1, 50)), Budget(gradients=7)),
        (DeepFool(), L2(Fraction(1, 10)), Budget(gradients=25)),
        (Boundary(), L2(Fraction(1, 10)), Budget(queries=33)),
    ],
    ids=["pgd", "deepfool", "boundary"],
)
def test_budgets_are_enforced(attack: Attack, ball: PerturbationSet, budget: Budget) -> None:
    outcomes = SingleRun(attack, ball, budget=budget).run().outcomes
    limit = budget.gradients if budget.gradients is not None else budget.queries
    spent = outcomes.gradients if budget.gradients is not None else outcomes.forwards
    assert spent.max() <= (limit or 0)
    robust = outcomes.verdict == Verdict.ROBUST
    # A row that has not spent its budget has converged on a success outside the ball.
    assert robust.any()
    assert ((spent >= (limit or 0) - 9) | (outcomes.distance > ball.radius))[robust].all()


@dataclass(frozen=True)
class ManyQueries:
    """Makes many queries in its one step."""

    queries: int
    name: str = "many-queries"
    steps: int = 1
    needs = Access.GRADIENTS

    def start(self, problem: Problem) -> Tensor:
        return problem.x.clone()

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        for _ in range(self.queries):
            gradient = problem.gradient(adv, margin).gradient
            adv = problem.ball.ascend(adv, gradient, 0.1, problem.x)
        return adv


def test_a_query_over_the_budget_gains_nothing_within_a_step() -> None:
    unlimited = SingleRun(ManyQueries(40)).run().outcomes
    limited = SingleRun(ManyQueries(40), budget=Budget(queries=1)).run()
    reached = SingleRun(ManyQueries(40)).spec().reached_on_clean.numpy()
    assert (unlimited.verdict == Verdict.BROKEN).sum() > 100
    assert ((limited.outcomes.verdict == Verdict.BROKEN) == reached).all()
    assert torch.equal(limited.images, digits(COUNT)[0]), "the image from before the refused step"
    assert (limited.outcomes.forwards[~reached] == 1).all()


def test_misclassified_clean_images_cost_no_query() -> None:
    spec = replace(SingleRun(PGD(steps=3)).spec(), reached_on_clean=torch.arange(COUNT) % 3 == 0)
    referee = SingleRun(PGD(steps=3)).referee(spec)
    parts = list(run_attack(spec, referee.confirm))
    item = torch.cat([part.item for part in parts])
    cost = torch.cat([part.forwards for part in parts])[item.argsort()]
    assert torch.equal(cost == 0, spec.reached_on_clean)


def test_an_item_whose_candidate_is_refused_continues_to_its_last_step() -> None:
    single = SingleRun(PGD(steps=6))
    spec = single.spec()
    parts = list(run_attack(spec, lambda items, images: torch.zeros(len(items), dtype=torch.bool)))
    item = torch.cat([part.item for part in parts]).argsort()
    step = torch.cat([part.step for part in parts])[item]
    assert (step[~spec.reached_on_clean] == -1).all()
    assert (torch.cat([part.gradients for part in parts])[item][~spec.reached_on_clean] == 6).all()


def test_retirement_and_refill_save_calls_and_break_the_same_examples() -> None:
    """1,000 examples at batch 100 (padded to 128) against fixed batches that make every step."""
    single = SingleRun(PGD(), count=1000)
    result = single.run(100)
    model, calls, broken = ModelAccess(small_cnn()), 0, []
    for rows in torch.arange(1000).view(10, 100):
        fixed_spec = replace(single, count=1000).spec(128)
        part = _fixed(fixed_spec, rows, model)
        broken.append(part)
        calls += 1 + PGD().steps
    assert torch.equal(torch.cat(broken), torch.from_numpy(result.outcomes.verdict == 1))
    assert result.calls * 3 <= calls


def _fixed(spec: CellSpec, rows: Tensor, model: ModelAccess) -> Tensor:
    """[n] bool: broken at some iterate, where every row makes every step."""
    where = pad_rows(rows, 128)
    problem = BatchProblem(
        model, spec.ball, spec.goal, spec.x[where], spec.y[where], target=spec.target[where],
        clean_logits=spec.clean_logits[where], example=where, seed=0, name="pgd", budget=Budget(),
    )  # fmt: skip
    adv = spec.attack.start(problem.at_start(torch.arange(128)))
    ever = spec.reached_on_clean[where].clone()
    for _ in range(spec.attack.steps):
        ever |= problem.reaches_goal(model.logits(adv))
        adv = spec.attack.step(problem, adv)
        problem.t = problem.t + 1
    ever |= problem.reaches_goal(model.logits(adv))
    return ever[: len(rows)]

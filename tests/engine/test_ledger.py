"""What a row pays: every question that was asked for it, no other, and never over its budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import Verdict
from bench.engine.cell_spec import CellSpec
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BATCH_UNIT, BatchProblem
from bench.engine.runner import run_attack
from bench.plugin import Access, Attack, Problem, margin
from bench.threats.access import Budget
from bench.threats.norms import L2, Linf, PerturbationSet
from plugins.attacks.boundary import Boundary
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.pgd import PGD
from tests.engine.single_run import COUNT, LINF, SingleRun
from tests.fixtures.known_models import digits, rows_of, small_cnn


class Certain(nn.Module):
    """Always answers the class it was told for that many images; has a gradient all the same."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = digits(COUNT)
        near = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        flat = images.flatten(1).mean(1, keepdim=True)
        return nn.functional.one_hot(y[near], 10).float() * (5 + flat)


def add(rows: dict[str, int], name: str, tensor: Any) -> None:
    rows[name] += len(tensor)


def test_counts_equal_those_of_an_independent_hook() -> None:
    """32 rows that never break fill every slot: each model call is 32 rows that somebody pays."""
    rows = {"forward": 0, "backward": 0}
    model = Certain()
    match = SingleRun(
        PGD(steps=7, restarts=2), Linf(Fraction(1, 100)), model=model, count=BATCH_UNIT
    )
    game = match.spec(BATCH_UNIT)
    model.register_forward_hook(lambda _, __, out: add(rows, "forward", out))
    model.register_full_backward_hook(lambda _, __, out: add(rows, "backward", *out))
    parts = list(run_attack(game, match.referee(game).confirm))
    forwards = sum(int(part.forwards.sum()) for part in parts)
    gradients = sum(int(part.gradients.sum()) for part in parts)
    looks = sum(int(part.final_checks.sum()) for part in parts)
    assert rows == {"forward": forwards + looks, "backward": gradients}
    assert (forwards, gradients, looks) == (BATCH_UNIT * 14, BATCH_UNIT * 14, BATCH_UNIT * 2)


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
    held = outcomes.verdict == Verdict.ROBUST
    # A row that has not spent its budget has converged on a success outside the ball.
    assert held.any()
    assert ((spent >= (limit or 0) - 9) | (outcomes.distance > ball.radius))[held].all()


@dataclass(frozen=True)
class Greedy:
    """Puts many questions in its one step."""

    asks: int
    name: str = "greedy"
    steps: int = 1
    needs = Access.GRADIENTS

    def start(self, problem: Problem) -> Tensor:
        return problem.x.clone()

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        for _ in range(self.asks):
            uphill = problem.gradient(adv, margin).gradient
            adv = problem.ball.ascend(adv, uphill, 0.1, problem.x)
        return adv


def test_a_question_over_the_budget_gains_nothing_within_a_step() -> None:
    free = SingleRun(Greedy(40)).run().outcomes
    poor = SingleRun(Greedy(40), budget=Budget(queries=1)).run()
    lost = SingleRun(Greedy(40)).spec().reached_on_clean.numpy()
    assert (free.verdict == Verdict.BROKEN).sum() > 100
    assert ((poor.outcomes.verdict == Verdict.BROKEN) == lost).all()
    assert torch.equal(poor.images, digits(COUNT)[0]), "the image from before the refused step"
    assert (poor.outcomes.forwards[~lost] == 1).all()


def answers(rows: BatchProblem, asking: Tensor | None) -> Iterator[Tensor]:
    """All that an attack may hear of the clean images."""
    classes = (torch.arange(2) + torch.zeros_like(rows.y)[:, None]).long()
    yield rows.logits(rows.x, asking)
    yield from rows.gradient(rows.x, margin, asking)
    yield from rows.jacobian(rows.x, classes, asking)


def test_rows_that_do_not_ask_are_told_nothing() -> None:
    rows = rows_of(PGD(), small_cnn(), *digits(BATCH_UNIT), LINF)
    asking = torch.arange(BATCH_UNIT) % 2 == 0
    for answer in answers(rows, asking):
        heard = answer.view(BATCH_UNIT, -1).ne(0).any(1)
        assert heard[asking].all() and not heard[~asking].any()
    assert (rows.labels(rows.x, asking)[~asking] == 0).all()
    assert torch.equal(rows.ledger.forwards > 0, asking)


def test_rows_that_cannot_pay_are_told_nothing() -> None:
    rows = rows_of(PGD(), small_cnn(), *digits(BATCH_UNIT), LINF)
    rows.ledger.budget = Budget(queries=0)
    for answer in answers(rows, None):
        assert not answer.any()
    assert not rows.labels(rows.x).any() and rows.ledger.refused.all()
    assert not rows.ledger.forwards.any()


def test_clean_mistakes_cost_nothing_and_count_as_broken() -> None:
    game = replace(SingleRun(PGD(steps=3)).spec(), reached_on_clean=torch.arange(COUNT) % 3 == 0)
    referee = SingleRun(PGD(steps=3)).referee(game)
    parts = list(run_attack(game, referee.confirm))
    item = torch.cat([part.item for part in parts])
    cost = torch.cat([part.forwards for part in parts])[item.argsort()]
    assert torch.equal(cost == 0, game.reached_on_clean)


def test_a_claim_that_the_referee_refuses_goes_on() -> None:
    match = SingleRun(PGD(steps=6))
    game = match.spec()
    parts = list(run_attack(game, lambda items, images: torch.zeros(len(items), dtype=torch.bool)))
    item = torch.cat([part.item for part in parts]).argsort()
    step = torch.cat([part.step for part in parts])[item]
    assert (step[~game.reached_on_clean] == -1).all()
    assert (torch.cat([part.gradients for part in parts])[item][~game.reached_on_clean] == 6).all()


def test_retirement_with_refill_saves_calls_and_breaks_the_same() -> None:
    """1,000 examples at batch 100 (padded to 128) against fixed batches that make every step."""
    match = SingleRun(PGD(), count=1000)
    played = match.run(100)
    model, calls, broken = ModelAccess(small_cnn()), 0, []
    for rows in torch.arange(1000).view(10, 100):
        solo = replace(match, count=1000).spec(128)
        part = _fixed(solo, rows, model)
        broken.append(part)
        calls += 1 + PGD().steps
    assert torch.equal(torch.cat(broken), torch.from_numpy(played.outcomes.verdict == 1))
    assert played.calls * 3 <= calls


def _fixed(game: CellSpec, rows: Tensor, model: ModelAccess) -> Tensor:
    """Every row makes every step; broken is whoever was wrong at any iterate."""
    from bench.engine.problem import BatchProblem, pad_rows

    where = pad_rows(rows, 128)
    problem = BatchProblem(
        model, game.ball, game.goal, game.x[where], game.y[where], target=game.target[where],
        clean_logits=game.clean_logits[where], example=where, seed=0, name="pgd", budget=Budget(),
    )  # fmt: skip
    adv = game.attack.start(problem.at_start(torch.arange(128)))
    ever = game.reached_on_clean[where].clone()
    for _ in range(game.attack.steps):
        ever |= problem.reaches_goal(model.logits(adv))
        adv = game.attack.step(problem, adv)
        problem.t = problem.t + 1
    ever |= problem.reaches_goal(model.logits(adv))
    return ever[: len(rows)]

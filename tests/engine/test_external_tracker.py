"""Tests of bench.engine.external_tracker: which successes of a library are kept."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import Verdict
from bench.engine.problem import BATCH_UNIT
from bench.plugin import Access, ExternalProblem
from bench.threats.norms import L2, Linf
from bench.threats.threat_model import Goal
from tests.engine.external_cell import (
    LINF,
    AlwaysRight,
    Run,
    attack,
    cell,
    input_gradient,
    referee,
    run_cell,
    run_on_small_cnn,
    sign_steps,
)
from tests.fixtures.known_models import digits, run_and_judge, small_cnn
from tests.fixtures.rejecting_defenses import (
    accepts_between,
    always_rejects,
    run_on_grey_images,
)


def test_a_library_sees_logits_only_and_is_judged_with_the_rejection_score() -> None:
    seen: list[int] = []

    class Library:
        name = "library"
        needs = Access.GRADIENTS
        rows = 0

        def run(self, problem: ExternalProblem) -> Tensor:
            adv = problem.x.clone()
            for _ in range(10):
                leaf = adv.requires_grad_()
                logits = problem.model(leaf)
                seen.append(logits.shape[1])
                (slope,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
                adv = problem.ball.project(adv.detach() + 0.02 * slope.sign(), problem.x)
            return adv

    found = run_on_grey_images(Library(), accepts_between(0.54, 0.58))
    assert set(seen) == {2}
    assert found.broken.all() and (found.step == 5).all()
    assert not run_on_grey_images(Library(), always_rejects).broken.any()


def test_the_first_success_is_kept_with_its_cost() -> None:
    """Broken at the third query, whatever is queried or returned after it."""

    def run(problem: ExternalProblem) -> Tensor:
        away = problem.ball.project(climb_by(problem, 12), problem.x)
        for query in (problem.x, problem.x, away, problem.x, problem.x):
            problem.model(query)
        return torch.full_like(problem.x, 7.0)

    def climb_by(problem: ExternalProblem, steps: int) -> Tensor:
        adv = problem.x
        for _ in range(steps):
            leaf = adv.clone().requires_grad_()
            loss = nn.functional.cross_entropy(small_cnn()(leaf), problem.y, reduction="sum")
            (slope,) = torch.autograd.grad(loss, leaf)
            adv = problem.ball.project(adv + 0.05 * slope.sign(), problem.x)
        return adv

    result = run_on_small_cnn(run, n=64)
    won = result.step >= 0
    assert 30 < won.sum() < 64
    assert set(result.forwards[won].tolist()) <= {0, 3} and result.broken[won].all()
    assert set(result.step[won].tolist()) <= {0, 2}
    assert set(result.forwards[~won].tolist()) == {5} and set(
        result.final_checks[~won].tolist()
    ) == {1}


def test_of_many_images_of_one_row_the_first_success_counts() -> None:
    x, y = digits(BATCH_UNIT)
    best = run_and_judge(attack(sign_steps), small_cnn(), x, y, LINF)

    def run(problem: ExternalProblem) -> Tensor:
        near = torch.cdist(problem.x.flatten(1), x.flatten(1)).argmin()
        problem.model(torch.stack([x[near], x[near], best.image[near], best.image[near]]))
        return problem.x

    result = run_on_small_cnn(run, rows=1)
    assert torch.equal(result.broken, best.broken)
    assert set(result.forwards[best.broken & (best.forwards > 0)].tolist()) == {3}
    assert set(result.step[best.broken & (best.forwards > 0)].tolist()) == {2}


def test_a_run_ends_when_every_row_is_broken() -> None:
    calls: list[int] = []

    def run(problem: ExternalProblem) -> Tensor:
        for _ in range(500):
            calls.append(1)
            problem.model(problem.ball.project(torch.rand_like(problem.x), problem.x))
        return problem.x

    runner = attack(run)
    result = run_and_judge(runner, small_cnn(), *digits(BATCH_UNIT), Linf(Fraction(1)))
    assert result.broken.all() and len(calls) < 50


def test_the_goal_nearest_keeps_the_nearest_success_of_a_library() -> None:
    def run(problem: ExternalProblem) -> Tensor:
        direction = input_gradient(problem, problem.x)
        length = direction.square().flatten(1).sum(1).sqrt().clamp_min(1e-12)
        for size in (4.0, 1.0, 2.0, 3.0):
            problem.model((problem.x + size * direction / length[:, None, None, None]).clamp(0, 1))
        return problem.x

    nearest = Goal("nearest")
    runner = attack(run, minimises=True)
    result = run_and_judge(runner, small_cnn(), *digits(64), L2(Fraction(8)), goal=nearest)
    lost = small_cnn()(digits(64)[0]).argmax(1) != digits(64)[1]
    sizes = result.distance[result.broken & ~lost]
    assert 10 < (sizes < 1.01).sum() < 64 and ((sizes > 1.01) & (sizes < 4.01)).any()


def test_a_library_transfer_attack_is_not_stopped_by_success_on_the_target() -> None:
    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    runner = attack(sign_steps, source="surrogate")
    result = run_and_judge(runner, small_cnn(), *digits(BATCH_UNIT), LINF, source=surrogate)
    assert set(result.final_checks.tolist()) <= {0, 1} and set(result.step.tolist()) <= {-1, 0, 10}
    assert set(result.forwards[result.final_checks > 0].tolist()) == {10}


INVALID_IMAGES: dict[str, Run] = {
    "unchanged": lambda problem: problem.x,
    "far away": lambda problem: (problem.x + 2 * problem.ball.radius).clamp(0, 1),
    "out of the box": lambda problem: problem.x - problem.ball.radius,
    "no numbers": lambda problem: problem.x * torch.nan,
    "beside": lambda problem: problem.x.zero_() + 0.5,
}


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [
        ("unchanged", Verdict.ROBUST), ("far away", Verdict.OUT_OF_BALL),
        ("out of the box", Verdict.OUT_OF_BOX), ("no numbers", Verdict.NOT_FINITE),
        ("beside", Verdict.OUT_OF_BALL),
    ],
)  # fmt: skip
def test_invalid_returned_images_break_nothing(returned: str, verdict: Verdict) -> None:
    spec = cell(attack(INVALID_IMAGES[returned]), AlwaysRight())
    outcomes = referee(spec).judge(run_cell(spec))
    assert set(outcomes.verdict.tolist()) == {int(verdict)}


def test_a_query_outside_the_ball_is_no_success() -> None:
    def run(problem: ExternalProblem) -> Tensor:
        problem.model((problem.x + 0.9).clamp(0, 1))
        problem.x.add_(0.9).clamp_(0, 1)  # the library's copy of x does not move the ball
        problem.model(problem.x)
        return problem.x

    found = run_cell(cell(attack(run)))
    assert set(found.step.tolist()) <= {-1, 0} and (found.final_checks > 0).sum() >= 30

"""What attacks and models may do at the engine's table, and what is left as it was found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import BATCH_UNIT
from bench.engine.runner import run_attack
from bench.plugin import Access, Attack, Problem, cross_entropy
from plugins.attacks.pgd import PGD
from tests.engine.single_run import COUNT, SingleRun, NoisyModel
from tests.fixtures.known_models import digits, small_cnn


class Peek:
    """Asks in start, which is forbidden."""

    name = "peek"
    needs = Access.GRADIENTS
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        return problem.gradient(problem.x, cross_entropy).gradient

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        return adv


class Raises(Peek):
    """Fails in the middle, after soiling nothing."""

    steps = 9

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        if int(problem.t.max()) == 3:
            raise RuntimeError("out of ideas")
        return adv + 0.01 * problem.gradient(adv, cross_entropy).gradient


class Twice(Peek):
    """Draws under one name in start and in the first step."""

    def start(self, problem: Problem) -> Tensor:
        return problem.uniform("same", tuple(problem.x.shape[1:]))

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        assert not torch.equal(adv, problem.uniform("same", tuple(problem.x.shape[1:])))
        return adv


class Clock(Peek):
    """Looks at every row's clock, idle ones included: a schedule may be indexed by it."""

    steps = 5

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        assert 0 <= int(problem.t.min()) <= int(problem.t.max()) < self.steps
        return problem.ball.project(adv + 0.03 * problem.gradient(adv, cross_entropy).gradient, adv)


class Blind(nn.Module):
    """No slope, and not a number on dark images."""

    def forward(self, images: Tensor) -> Tensor:
        logits = small_cnn()(images).detach()
        return torch.where(images.flatten(1).mean(1, keepdim=True) < 0.05, torch.nan, logits)


def test_start_draws_other_numbers_than_the_first_step() -> None:
    assert len(SingleRun(Twice(), count=BATCH_UNIT).run(BATCH_UNIT).outcomes.item) == BATCH_UNIT


def test_no_clock_runs_past_the_last_step() -> None:
    assert len(SingleRun(Clock()).run(32).outcomes.item) == COUNT


def test_start_may_not_ask() -> None:
    match = SingleRun(Peek())
    game = match.spec()
    with pytest.raises(PluginError, match="peek asked the defense a question in start"):
        list(run_attack(game, match.referee(game).confirm))


@pytest.mark.parametrize("attack", [PGD(steps=4), Raises()], ids=["to the end", "until it fails"])
def test_model_and_random_state_are_left_alone(attack: Attack) -> None:
    model = copy.deepcopy(small_cnn())
    match = SingleRun(attack, model=model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, hooks = torch.get_rng_state(), len(model._forward_hooks)
    game = match.spec()
    try:
        list(run_attack(game, match.referee(game).confirm))
    except RuntimeError as error:
        assert str(error) == "out of ideas"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and len(model._forward_hooks) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_gradient_and_no_number_end_in_verdicts() -> None:
    outcomes = SingleRun(PGD(steps=3), model=Blind()).run().outcomes
    assert len(outcomes.item) == COUNT


def test_a_random_defense_sees_fresh_noise_at_every_call() -> None:
    model = NoisyModel(0.3)
    noise = SeededNoise(0, "play", torch.device("cpu"))
    door = ModelAccess(model, noise=noise)
    x, _ = digits(8)
    noise.begin(0)
    first, second = door.logits(x), door.logits(x)
    noise.begin(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, door.logits(x))
    noise.begin(1)
    assert not torch.equal(first, door.logits(x))


class Lottery(nn.Module):
    """The small network; off the grid of the digits it names, undeclared, now and then another."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.body, self.share = copy.deepcopy(small_cnn()), share

    def forward(self, images: Tensor) -> Tensor:
        logits = self.body(images)
        moved = (images * 16 - (images * 16).round()).flatten(1).abs().amax(1) > 0.1
        lucky = moved & (torch.rand(len(images)) < self.share)
        return torch.where(lucky[:, None], logits.roll(1, 1), logits)


def test_a_lucky_answer_of_an_undeclared_lottery_ends_no_attack() -> None:
    """Else it would help the defense: its row would leave, and hold before the judge."""

    def broken(share: float) -> int:
        torch.manual_seed(0)
        return int((SingleRun(PGD(), model=Lottery(share)).run().outcomes.verdict == 1).sum())

    assert broken(0.1) > 0.85 * broken(0.0) > 100

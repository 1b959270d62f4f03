"""Tests of bench.engine.scheduler: admission, steps, retirement, and what it leaves unchanged."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine import scheduler
from bench.engine.cell_spec import Candidates
from bench.engine.problem import BATCH_UNIT
from bench.engine.runner import run_attack
from bench.engine.scheduler import ChunkBuffer
from bench.plugin import Access, Attack, Problem, cross_entropy
from bench.threats.norms import Linf
from plugins.attacks.pgd import PGD
from tests.engine.single_run import COUNT, NoisyModel, SingleRun
from tests.fixtures.known_models import small_cnn


class QueriesInStart:
    """Makes a query in start, which is refused."""

    name = "queries-in-start"
    needs = Access.GRADIENTS
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        return problem.gradient(problem.x, cross_entropy).gradient

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        return adv


class Raises(QueriesInStart):
    """Raises in its fourth step."""

    steps = 9

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        if int(problem.t.max()) == 3:
            raise RuntimeError("out of ideas")
        return adv + 0.01 * problem.gradient(adv, cross_entropy).gradient


class DrawsTwice(QueriesInStart):
    """Draws under the same name in start and in the first step."""

    def start(self, problem: Problem) -> Tensor:
        return problem.uniform("same", tuple(problem.x.shape[1:]))

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        assert not torch.equal(adv, problem.uniform("same", tuple(problem.x.shape[1:])))
        return adv


class ReadsStepCounts(QueriesInStart):
    """Checks the step count of every slot, empty ones included: it may index a schedule."""

    steps = 5

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        assert 0 <= int(problem.t.min()) <= int(problem.t.max()) < self.steps
        return problem.ball.project(adv + 0.03 * problem.gradient(adv, cross_entropy).gradient, adv)


class NoGradient(nn.Module):
    """Has no gradient, and NaN logits for dark images."""

    def forward(self, images: Tensor) -> Tensor:
        logits = small_cnn()(images).detach()
        return torch.where(images.flatten(1).mean(1, keepdim=True) < 0.05, torch.nan, logits)


def test_start_and_the_first_step_draw_different_random_numbers() -> None:
    assert (
        len(SingleRun(DrawsTwice(), count=BATCH_UNIT).run(BATCH_UNIT).outcomes.item) == BATCH_UNIT
    )


def test_no_step_count_passes_the_last_step() -> None:
    assert len(SingleRun(ReadsStepCounts()).run(32).outcomes.item) == COUNT


def test_a_query_in_start_is_refused() -> None:
    single = SingleRun(QueriesInStart())
    spec = single.spec()
    with pytest.raises(PluginError, match="queries-in-start queried the defense in start"):
        list(run_attack(spec, single.referee(spec).confirm))


@pytest.mark.parametrize("attack", [PGD(steps=4), Raises()], ids=["to the end", "until it fails"])
def test_an_attack_leaves_model_and_random_state_unchanged(attack: Attack) -> None:
    model = copy.deepcopy(small_cnn())
    single = SingleRun(attack, model=model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, hooks = torch.get_rng_state(), len(model._forward_hooks)
    spec = single.spec()
    try:
        list(run_attack(spec, single.referee(spec).confirm))
    except RuntimeError as error:
        assert str(error) == "out of ideas"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and len(model._forward_hooks) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_gradients_and_with_nan_logits_gets_outcomes() -> None:
    outcomes = SingleRun(PGD(steps=3), model=NoGradient()).run().outcomes
    assert len(outcomes.item) == COUNT


class UndeclaredNoise(nn.Module):
    """The small CNN with undeclared random wrong answers to images off the grid of the digits."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.body, self.share = copy.deepcopy(small_cnn()), share

    def forward(self, images: Tensor) -> Tensor:
        logits = self.body(images)
        moved = (images * 16 - (images * 16).round()).flatten(1).abs().amax(1) > 0.1
        wrong = moved & (torch.rand(len(images)) < self.share)
        return torch.where(wrong[:, None], logits.roll(1, 1), logits)


def test_a_random_wrong_answer_of_an_undeclared_random_defense_ends_no_attack() -> None:
    """Otherwise the item would retire early and then count as robust for the referee."""

    def broken(share: float) -> int:
        torch.manual_seed(0)
        return int(
            (SingleRun(PGD(), model=UndeclaredNoise(share)).run().outcomes.verdict == 1).sum()
        )

    assert broken(0.1) > 0.85 * broken(0.0) > 100


@dataclass(frozen=True)
class SucceedsOnSchedule:
    """Queries the clean image, except the negative at one step of one restart of each example."""

    name = "succeeds-on-schedule"
    needs = Access.SCORES
    steps: int = 7

    def restart_count(self, classes: int) -> int:
        return 3

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        due = self.due(1 - problem.x)
        now = (problem.restart == due // self.steps) & (problem.t == due % self.steps)
        problem.logits(torch.where(now[:, None, None, None], 1 - problem.x, problem.x))
        return adv

    def due(self, negative: Tensor) -> Tensor:
        """The query [n] that succeeds, counted over all restarts; from the pixels of the image."""
        brightness = (negative.flatten(1).double().sum(1) * 255).round().long()
        return brightness % (3 * self.steps)


@pytest.mark.parametrize("slots", [32, 512])
def test_each_item_retires_at_its_success_and_pays_for_no_later_query(slots: int) -> None:
    attack = SucceedsOnSchedule()
    spec = SingleRun(attack, Linf(Fraction(1))).spec(slots)
    never = small_cnn()(1 - spec.x[:]).argmax(1) == spec.y
    parts = list(run_attack(spec, lambda items, images: torch.ones(len(items)) > 0))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    found = Candidates(*(column[columns[0].argsort()] for column in columns))
    due, won = attack.due(1 - spec.x[:]), ~spec.reached_on_clean & ~never
    assert won.sum() > 100 and len(set(due[won].tolist())) == 3 * attack.steps
    assert torch.equal(found.step[won], due[won] % attack.steps)
    assert torch.equal(found.restart[won], due[won] // attack.steps)
    assert torch.equal(found.forwards[won], due[won] + 1)
    assert torch.equal(found.final_checks[won], due[won] // attack.steps)
    assert torch.equal(found.image[won], 1 - spec.x[won])
    lost = ~spec.reached_on_clean & never
    assert set(found.step[lost].tolist()) <= {-1}
    assert set(found.forwards[lost].tolist()) <= {3 * attack.steps}


def test_finished_items_are_yielded_in_chunks_and_in_item_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = ChunkBuffer()
    spec = SingleRun(PGD(), count=40).spec()

    def due(seconds: float, items: int) -> bool:
        monkeypatch.setattr(scheduler, "CHUNK_SECONDS", seconds)
        monkeypatch.setattr(scheduler, "CHUNK_ITEMS", items)
        return buffer.due

    assert not due(-1.0, 0)
    buffer.add(Candidates.of_clean_images(spec, [7, 3]))
    assert due(-1.0, 3) and not due(1e9, 3)
    buffer.add(Candidates.of_clean_images(spec, [1]))
    assert due(1e9, 3) and not due(1e9, 4)
    assert buffer.take().item.tolist() == [1, 3, 7]
    assert not due(-1.0, 0)


def test_the_heartbeat_is_called_at_every_step_before_the_first_chunk() -> None:
    ball = Linf(Fraction(1, 10))
    single = SingleRun(PGD(steps=40), ball, model=NoisyModel(0.02), random=True, count=BATCH_UNIT)
    beats = [0]
    spec = replace(single.spec(), heartbeat=lambda: beats.__setitem__(0, beats[0] + 1))
    first = next(run_attack(spec, single.referee(spec).confirm))
    assert len(first.item) == BATCH_UNIT and beats[0] >= 40, (
        "a step of a large network may take as long as a lease"
    )

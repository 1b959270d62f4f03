"""Tests of bench.engine.model_access: access levels, randomness and visible answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.model_access import ModelAccess, SeededNoise, signed_loss
from bench.engine.problem import BATCH_UNIT, BatchProblem
from bench.engine.runner import run_attack
from bench.plugin import Access, Attack, Budget, ExternalProblem, Problem, margin
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.pgd import PGD
from plugins.attacks.square import Square
from tests.engine.single_run import LINF, NoisyModel, SingleRun, assert_same
from tests.fixtures.known_models import UNTARGETED, digits, small_cnn
from tests.fixtures.rejecting_defenses import (
    rejects_by_second_pixel,
    run_on_grey_images,
)
from tests.fixtures.writing_plugins import WRITES, WritingExternal, WritingModel


@dataclass
class RecordsColumns:
    """Makes each kind of query once and records the number of columns."""

    joint: bool = False
    widths: list[int] = field(default_factory=list)

    name = "records-columns"
    needs = Access.GRADIENTS
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        def loss(answer: Tensor, label: Tensor) -> Tensor:
            self.widths.append(answer.shape[1])
            return margin(answer, label)

        self.widths.append(problem.gradient(adv, loss).logits.shape[1])
        own = torch.zeros_like(problem.y)[:, None]
        self.widths.append(problem.jacobian(adv, own).logits.shape[1])
        self.widths.append(problem.logits(adv).shape[1])
        self.widths.append(problem.clean_logits.shape[1])
        assert problem.other_classes.shape[1] == problem.classes - 1 == 1
        assert problem.labels(adv).max() < problem.classes
        return adv


@dataclass
class AsksForMore:
    """Makes one query that needs more access than it declares."""

    needs: Access
    query: str

    name = "asks-for-more"
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        if self.query == "gradients":
            problem.gradient(adv, margin)
        elif self.query == "scores":
            problem.logits(adv)
        else:
            problem.labels(adv)
        return adv


@pytest.mark.row("G12")
@pytest.mark.parametrize(
    ("needs", "query", "allowed"),
    [
        (Access.NOTHING, "labels", False), (Access.LABELS, "labels", True),
        (Access.LABELS, "scores", False), (Access.LABELS, "gradients", False),
        (Access.SCORES, "scores", True), (Access.SCORES, "gradients", False),
        (Access.GRADIENTS, "gradients", True),
    ],
)  # fmt: skip
def test_a_black_box_answers_no_query_beyond_its_access(
    needs: Access, query: str, allowed: bool
) -> None:
    run = SingleRun(AsksForMore(needs, query), count=BATCH_UNIT)
    spec = replace(run.spec(), model_access=ModelAccess(small_cnn(), access=needs))
    if allowed:
        parts = list(run_attack(spec, run.referee(spec).confirm))
        assert max(int(part.forwards.max()) for part in parts) == 1
    else:
        with pytest.raises(PluginError, match=f"requested {query}"):
            list(run_attack(spec, run.referee(spec).confirm))


@pytest.mark.row("G11")
def test_a_white_box_gives_the_gradient_of_the_whole_chain() -> None:
    """Preprocessing and network together, against the chain rule by hand."""
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))

    class Squared(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images**2).flatten(1) @ weight.T

    x = digits(BATCH_UNIT)[0]
    found = ModelAccess(Squared()).gradient(x, lambda logits: logits[:, 0])
    expected = 2 * x * weight[0].view(1, 1, 8, 8)
    torch.testing.assert_close(found.gradient, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.logits, (x**2).flatten(1) @ weight.T)


def test_only_a_joint_attack_sees_the_rejection_score() -> None:
    plain, joint = RecordsColumns(), RecordsColumns(joint=True)
    run_on_grey_images(plain, rejects_by_second_pixel(0.5))
    run_on_grey_images(joint, rejects_by_second_pixel(0.5))
    assert plain.widths == [2, 2, 2, 2, 2]
    assert joint.widths == [3, 3, 3, 3, 2]


def test_a_random_defense_draws_new_noise_at_every_call() -> None:
    model = NoisyModel(0.3)
    noise = SeededNoise(0, "play", torch.device("cpu"))
    access = ModelAccess(model, noise=noise)
    x, _ = digits(8)
    noise.begin(0)
    first, second = access.logits(x), access.logits(x)
    noise.begin(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, access.logits(x))
    noise.begin(1)
    assert not torch.equal(first, access.logits(x))


ATTACKS = (PGD(steps=10), DeepFool(steps=10), Square(steps=50), WritingExternal("x", honest=True))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("write", WRITES)
def test_a_model_that_writes_gets_the_verdicts_of_its_honest_counterpart(
    write: str, attack: Attack
) -> None:
    writing, honest = (
        SingleRun(attack, model=WritingModel(small_cnn(), write, honest=honest), count=32)
        for honest in (False, True)
    )
    assert_same(writing.run(), honest.run())


@pytest.mark.parametrize("write", WRITES)
def test_a_surrogate_that_writes_gets_the_verdicts_of_its_honest_counterpart(write: str) -> None:
    writing, honest = (
        SingleRun(PGD(steps=10), source=WritingModel(small_cnn(), write, honest=honest), count=32)
        for honest in (False, True)
    )
    assert_same(writing.run(), honest.run())


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("draws", [1, 3])
def test_an_approximation_that_writes_gives_the_gradients_of_its_honest_counterpart(
    write: str, draws: int
) -> None:
    x, y = digits(16)
    given = x.clone()
    found = []
    for honest in (False, True):
        model, bpda = (WritingModel(small_cnn(), write, honest=honest) for _ in range(2))
        access = ModelAccess(model, bpda=bpda, draws=draws)
        loss = signed_loss(margin, y, 1)
        parts = [access.gradient(x, loss), access.gradient(1 - x, loss)]
        parts.append(access.gradient(x, loss))
        assert torch.equal(parts[0].gradient, parts[2].gradient)
        jacobian = access.jacobian(x, y[:, None])
        found.append([*parts[0], *parts[1], *jacobian])
    assert all(map(torch.equal, *found))
    assert torch.equal(x, given)


class Alternating(nn.Module):
    """A model that gives one answer after another, as a random one may."""

    def __init__(self, answers: list[list[float]]) -> None:
        super().__init__()
        self.answers, self.calls = torch.tensor(answers), 0

    def forward(self, images: Tensor) -> Tensor:
        found = self.answers[self.calls % len(self.answers)]
        self.calls += 1
        return found.expand(len(images), -1)


def voting(answers: list[list[float]], votes: int, **options: Any) -> ModelAccess:
    noise = SeededNoise(0, "play", torch.device("cpu"))
    return ModelAccess(Alternating(answers), votes=votes, noise=noise, **options)


ONE, TWO = [0.0, 9.0, 0.0], [0.0, 0.0, 1.0]
NO_LOGITS = [torch.nan, 0.0, 0.0]


@pytest.mark.parametrize(
    ("answers", "label"),
    [
        ([TWO, ONE, TWO, ONE, TWO], 2),  # the mean of the logits says 1
        ([ONE, TWO, ONE, TWO, TWO], 2),
        ([ONE, ONE, ONE, TWO, TWO], 1),
        ([TWO, ONE, TWO, ONE], 1),  # a tie goes to the smallest class
        ([TWO, [1.0, 0.0, 0.0], ONE], 0),
        ([NO_LOGITS, TWO, TWO], 2),
    ],
)
def test_a_label_is_the_majority_of_the_votes(answers: list[list[float]], label: int) -> None:
    access = voting(answers, len(answers))
    found = access.label_answers(torch.zeros(4, 1, 2, 2))
    assert found.argmax(1).tolist() == [label] * 4
    assert access.module.calls == len(answers)


def test_a_vote_without_finite_logits_in_most_draws_is_no_answer() -> None:
    found = voting([NO_LOGITS, NO_LOGITS, TWO], 3).label_answers(torch.zeros(2, 1, 2, 2))
    assert found.isnan().all()


@pytest.mark.parametrize(("rejected", "positive"), [(1, False), (2, True), (3, True)])
def test_a_vote_rejects_where_most_draws_do(rejected: int, positive: bool) -> None:
    answers = [[*TWO, 1.0 if draw < rejected else -1.0] for draw in range(3)]
    found = voting(answers, 3, rejects=True).label_answers(torch.zeros(2, 1, 2, 2))
    assert found.shape == (2, 4) and bool((found[:, 3] > 0).all()) is positive
    assert rejected == 3 or (found[:, :3].argmax(1) == 2).all()


@pytest.mark.parametrize(("votes", "random", "cost"), [(5, True, 5), (1, True, 2), (5, False, 2)])
def test_each_vote_is_charged_as_a_query(votes: int, random: bool, cost: int) -> None:
    x, y = digits(8)
    noise = SeededNoise(0, "play", torch.device("cpu")) if random else None
    model = NoisyModel(0.1)
    access = ModelAccess(model, access=Access.LABELS, votes=votes, draws=2, noise=noise)
    rows = BatchProblem(
        access, LINF, UNTARGETED, x, y, target=torch.full_like(y, -1),
        clean_logits=torch.zeros(8, 10), example=torch.arange(8), seed=0, name="asks-labels",
        budget=Budget(queries=11),
    )  # fmt: skip
    calls = [0]
    model.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    rows.labels(x)
    assert calls[0] == cost and rows.ledger.forwards.tolist() == [cost] * 8
    rows.labels(x)
    rows.labels(x)
    assert rows.ledger.refused.all() == (cost == 5)


class AsksModel:
    """An external attack that queries labels twice."""

    name = "asks-model"
    needs = Access.LABELS

    def run(self, problem: ExternalProblem) -> Tensor:
        one_hot = problem.model(problem.x)
        assert set(one_hot.flatten().tolist()) <= {0.0, 1.0}
        problem.model(problem.x)
        return problem.x


@pytest.mark.parametrize("votes", [1, 3])
def test_an_external_attack_pays_for_each_vote(votes: int) -> None:
    run = SingleRun(cast(Attack, AsksModel()), model=NoisyModel(0.05), random=True, count=8)
    spec = run.spec()
    voted = ModelAccess(run.model or small_cnn(), votes=votes, draws=1, noise=spec.noise)
    found = list(run_attack(replace(spec, model_access=voted), run.referee(spec).confirm))
    forwards = {int(n) for part in found for n in part.forwards}
    assert forwards <= {0, votes, 2 * votes} and 2 * votes in forwards


def test_the_true_gradient_can_be_used_beside_a_declared_approximation() -> None:
    x, y = digits(8)
    model, bpda = small_cnn(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loss = signed_loss(margin, y, 1)
    true, approximate = ModelAccess(model), ModelAccess(model, bpda=bpda)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(margin(model(leaf), y).sum(), leaf)
    assert torch.equal(true.gradient(x, loss).gradient, expected)
    assert not torch.equal(approximate.gradient(x, loss).gradient, expected)
    assert torch.equal(true.logits(x), approximate.logits(x))
    (own,) = torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)
    third = torch.full_like(y, 3)[:, None]
    assert torch.equal(true.jacobian(x, third).rows[:, 0], own)
    assert not torch.equal(approximate.jacobian(x, third).rows[:, 0], own)


def test_gradients_are_means_over_the_draws() -> None:
    x, y = digits(8)
    loss = signed_loss(margin, y, 1)
    noise = SeededNoise(0, "play", torch.device("cpu"))
    single = ModelAccess(NoisyModel(0.3), noise=noise)
    noise.begin(0)
    parts = [single.gradient(x, loss).gradient for _ in range(4)]
    noise.begin(0)
    mean = ModelAccess(single.module, draws=4, noise=noise).gradient(x, loss).gradient
    assert torch.equal(mean, torch.stack(parts).mean(0))
    assert not torch.equal(parts[0], parts[1])

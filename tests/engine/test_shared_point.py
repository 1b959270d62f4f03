"""Attacks that fit one point: what they see, what they cost, and how their point is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core.errors import PluginError
from bench.core.outcomes import Verdict
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.shared_point import fit_point, offer_point
from bench.plugin import Access, SharedProblem, cross_entropy, is_shared
from bench.threats.delta import LinfDelta
from bench.threats.random_patch import RandomPatch
from plugins.attacks.pgd import PGD
from tests.fixtures.known_models import digits, small_cnn
from tests.fixtures.shared_run import cell_of, referee_of, run_shared, training_images

BALL = LinfDelta(eps=Fraction(1, 5))
IMAGES, LABELS = digits(250)
TRAIN, TEST = (IMAGES[:100], LABELS[:100]), (IMAGES[100:], LABELS[100:])


class Planted:
    """An attack whose `fit` is given."""

    name = "planted"
    needs = Access.GRADIENTS

    def __init__(self, fit: Callable[[SharedProblem], Any], needs: Access = needs) -> None:
        self.fit, self.needs = fit, needs


def fitted(fit: Callable[[SharedProblem], Any], needs: Access = Access.GRADIENTS) -> Tensor:
    """The point of a planted attack on 100 digits."""
    planted = Planted(fit, needs)
    return fit_point(planted, *training_images(planted, BALL, small_cnn(), TRAIN))


def corner(problem: SharedProblem) -> Tensor:
    """A random corner of the set."""
    return problem.ball.farthest(problem.draws.normal("corner", (1, 8, 8)), problem.start)


def test_the_kind_of_an_attack_is_seen_by_its_methods() -> None:
    assert is_shared(Planted(corner)) and not is_shared(PGD())


def test_training_images_come_unpadded_as_copies_in_a_keyed_order() -> None:
    seen: dict[str, Any] = {}

    def fit(problem: SharedProblem) -> Tensor:
        seen["orders"] = [problem.order(k) for k in (0, 0, 1)]
        rows = problem.rows(torch.tensor([3, 99, 3]))
        seen["x"], seen["y"], seen["count"] = rows.x, rows.y, problem.count
        rows.x.zero_()
        seen["again"] = problem.rows(torch.tensor([3])).x
        return problem.start

    assert not fitted(fit).any()
    assert seen["count"] == 100
    assert torch.equal(seen["x"], TRAIN[0][[3, 99, 3]]) or not seen["x"].any()
    assert torch.equal(seen["again"], TRAIN[0][[3]])
    assert torch.equal(seen["y"], TRAIN[1][[3, 99, 3]])
    first, same, other = seen["orders"]
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert sorted(first.tolist()) == list(range(100)) and first.tolist() != list(range(100))


def test_every_query_of_the_fit_is_counted() -> None:
    def fit(problem: SharedProblem) -> Tensor:
        rows = problem.rows(torch.arange(10))
        point = problem.start.expand(10, 1, 8, 8)
        rows.gradient(point, cross_entropy)
        rows.logits(point, torch.arange(10) < 4)
        rows.jacobian(point[:10], torch.zeros(10, 3, dtype=torch.int64))
        for _ in range(300):
            problem.rows(torch.tensor([0])).logits(problem.start)
        return problem.start

    planted = Planted(fit)
    training, access = training_images(planted, BALL, small_cnn(), TRAIN)
    fit_point(planted, training, access)
    assert training.forwards == 10 + 10 + 4 + 10 + 300  # the first ten: clean logits
    assert training.gradients == 10 + 30


def test_gradients_are_those_at_the_point_with_the_draw_of_the_set() -> None:
    ball, seen = RandomPatch(size=3), dict[Any, Tensor]()

    def fit(problem: SharedProblem) -> Tensor:
        point = 0.5 * problem.ball.farthest(problem.draws.normal("p", (1, 3, 3)), problem.start)
        index = torch.arange(20)
        for draw in (1, 2):
            rows = problem.rows(index, draw)
            seen[draw] = rows.gradient(point.expand(20, 1, 3, 3), cross_entropy).gradient
        seen["point"] = point
        return point

    planted = Planted(fit)
    fit_point(planted, *training_images(planted, ball, small_cnn(), TRAIN))
    for draw in (1, 2):
        leaf = seen["point"].expand(20, 1, 3, 3).clone().requires_grad_()
        images = ball.drawn(draw).apply(leaf, TRAIN[0][:20])
        logits = small_cnn()(images)
        loss = torch.nn.functional.cross_entropy(logits, TRAIN[1][:20], reduction="sum")
        torch.autograd.backward(loss)
        assert leaf.grad is not None
        assert torch.allclose(seen[draw], leaf.grad, atol=1e-5)
    assert not torch.allclose(seen[1], seen[2])


WRONG = {
    "expected": lambda problem: None,
    r"float32 \[1, 8, 8\]; one point": lambda problem: problem.start[0],
    r"at distance 0.3 .* radius is 0.2: project it": lambda problem: problem.start + 0.3,
    "at distance nan": lambda problem: problem.start + torch.nan,
    "give at least one": lambda problem: problem.rows(torch.tensor([])),
    "use 1 or more": lambda problem: problem.rows(torch.tensor([1]), 0),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_no_point_of_the_set_is_refused_in_one_sentence(said: str) -> None:
    with pytest.raises(PluginError, match=said):
        fitted(WRONG[said])


def test_a_fit_has_no_more_access_than_it_declares() -> None:
    def fit(problem: SharedProblem) -> Tensor:
        problem.rows(torch.arange(2)).gradient(problem.start.expand(2, 1, 8, 8), cross_entropy)
        return problem.start

    with pytest.raises(PluginError, match="requested gradients"):
        fitted(fit, Access.SCORES)


def test_global_random_numbers_are_the_same_in_every_fit_and_restored() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    draw = lambda problem: 0.1 * torch.rand(1, 1, 8, 8)  # noqa: E731
    assert torch.equal(fitted(draw), fitted(draw))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.row("G15")
def test_the_referee_refuses_every_point_but_the_one() -> None:
    model = small_cnn()
    point = fitted(corner)
    spec = cell_of(BALL, model, TEST)
    referee = referee_of(spec, model, point)
    (part,) = offer_point(spec, point, referee.confirm, range(4))
    other = point.clone()
    other[0, 0, 4, 4] = -other[0, 0, 4, 4]
    part.image[1] = other
    part.image[2] = 0
    assert BALL.contains(part.image, spec.x[:4]).all()
    verdict = referee.judge(part).verdict.tolist()
    assert verdict[1:3] == [Verdict.OUT_OF_BALL] * 2
    assert not {verdict[0], verdict[3]} & {Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX}
    assert not referee.confirm(torch.arange(4), part.image)[1:3].any()


@pytest.mark.row("G15")
def test_every_example_is_judged_with_the_point_also_those_that_are_wrong_when_clean() -> None:
    found = run_shared(Planted(corner), BALL, small_cnn(), TRAIN, TEST)
    assert (found.points == found.point).flatten(1).all() and len(found.points) == 150
    assert found.outcomes.item.tolist() == list(range(150))
    assert (found.outcomes.final_checks == 1).all() and not found.outcomes.forwards.any()
    model = small_cnn()
    wrong = model((TEST[0] + found.point).clamp(0, 1)).argmax(1) != TEST[1]
    assert torch.equal(torch.from_numpy(found.outcomes.verdict == Verdict.BROKEN), wrong)
    assert torch.equal(torch.from_numpy(found.outcomes.claimed == 1), wrong)


def test_items_are_offered_in_groups_and_whole_ones_for_a_random_defense() -> None:
    spec = cell_of(BALL, small_cnn(), TEST)
    point = fitted(corner)
    confirm = referee_of(spec, small_cnn(), point).confirm
    parts = list(offer_point(spec, point, confirm, {1, 70, 149, 64}))
    assert [part.item.tolist() for part in parts] == [[1], [64, 70], [149]]
    noise = SeededNoise(0, "play", torch.device("cpu"))
    random = replace(spec, noise=noise, defense=ModelAccess(small_cnn(), noise=noise))
    parts = list(offer_point(random, point, confirm, {70}))
    assert [part.item.tolist() for part in parts] == [list(range(64, 128))]

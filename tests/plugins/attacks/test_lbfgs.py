"""L-BFGS attack: the closed form on affine models, and as near as Carlini-Wagner on a network."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.norms import L2
from bench.threats.threat_model import Goal
from plugins.attacks import lbfgs
from plugins.attacks._bounded_lbfgs import dot, search_direction
from plugins.attacks.carlini_wagner import CarliniWagner
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)
from tests.fixtures.protocol_dg import DigitsTestbed, recipe, testbed

__all__ = ["testbed"]  # the fixture, which pytest finds here

BALL, NEAREST = L2(Fraction(100)), Goal("nearest")
FOUND = {attack.name: attack for attack in lbfgs.bench_attacks()}
TARGETED, EVERY_TARGET = FOUND["lbfgs"], FOUND["lbfgs-t"]
assert isinstance(EVERY_TARGET, lbfgs.LBFGS)
ONE_TARGET = dataclasses.replace(EVERY_TARGET, targets=1)


def centred() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A binary affine model, images, labels, and the distances to its hyperplane."""
    weight, x = gaussian(12, seed=5), interior(32, 12)
    model = binary(weight, -float(x.flatten(1).double().mean(0) @ weight.double()) + 0.1)
    logits = ModelAccess(model).logits(x)
    y = logits.argmax(1)
    return model, x, y, -margin(logits, y) / weight.norm()


@pytest.mark.row("A01")
def test_on_an_affine_model_of_two_classes_it_reaches_the_hyperplane() -> None:
    model, x, y, nearest = centred()
    result = run_and_judge(EVERY_TARGET, model, x, y, BALL, goal=NEAREST)
    assert result.broken.all()
    assert (result.distance >= nearest - 1e-6).all()
    assert (result.distance <= 1.005 * nearest + 1e-6).all()


@pytest.mark.row("A01")
def test_on_an_affine_model_it_reaches_the_nearest_hyperplane_of_two_classes() -> None:
    """min over k of (z_y - z_k) / ||w_k - w_y||, where two classes have all of the probability."""
    weight, x = 10 * gaussian(6, 12, seed=4), interior(16, 12)
    logits = ModelAccess(linear(weight)).logits(x)
    y = logits.argmax(1)
    apart = (weight - weight[y][:, None]).double().norm(dim=2)
    gap = logits.gather(1, y[:, None]).double() - logits
    nearest = torch.where(apart > 0, gap / apart, torch.inf).amin(1)
    result = run_and_judge(EVERY_TARGET, linear(weight), x, y, BALL, goal=NEAREST)
    assert result.broken.all()
    assert (result.distance >= nearest - 1e-6).all()
    assert (result.distance <= 1.005 * nearest + 1e-6).all()


@pytest.mark.row("A01")
def test_the_distance_of_the_minimum_falls_as_c_grows() -> None:
    """Of every example of an affine model, where the objective is convex."""
    model, x, y, _ = centred()
    before = torch.full((32,), torch.inf)
    for weight in (0.1, 0.5, 1.0, 5.0, 20.0, 100.0):
        attack = dataclasses.replace(ONE_TARGET, weight=weight, rounds=1)
        ended = torch.zeros(32)
        for state in states(attack, rows_of(attack, model, x, y, BALL, goal=NEAREST)):
            first = (state.finished_rounds == 1) & (ended == 0)
            ended = torch.where(first, BALL.distance(state.point, x), ended)
        assert (ended > 0).all()
        assert (ended <= before + 1e-5).all() and ended.mean() < before.mean()
        before = ended


def test_the_search_direction_after_enough_steps_is_that_of_newton() -> None:
    """On a quadratic function of four pixels, four conjugate steps give the inverse Hessian."""
    scale = torch.tensor([1.0, 2.0, 5.0, 9.0]).view(1, 1, 1, 4)
    steps = torch.eye(4).view(1, 4, 1, 1, 4)
    gradient = gaussian(1, 1, 1, 4)
    direction = search_direction(torch.full_like(scale, 0.5), gradient, steps, scale * steps)
    assert torch.allclose(direction, -gradient / scale, rtol=1e-5)


def test_pixels_that_descent_would_move_out_of_the_box_stay() -> None:
    point = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5]).view(1, 1, 1, 5)
    gradient = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0]).view(1, 1, 1, 5)
    steps, changes = gaussian(2, 1, 3, 1, 1, 5)
    direction = search_direction(point, gradient, steps, changes)
    assert torch.equal(direction.flatten() == 0, torch.tensor([True, False, True, False, False]))
    assert dot(direction, gradient) < 0


def test_steps_of_negative_curvature_are_not_used() -> None:
    gradient, steps = gaussian(4, 1, 2, 2), gaussian(4, 3, 1, 2, 2, seed=1)
    middle = torch.full_like(gradient, 0.5)
    assert torch.equal(search_direction(middle, gradient, steps, -steps), -gradient)


def test_the_objective_never_rises_within_a_round_and_the_distance_never_grows() -> None:
    x, y = digits(32)
    rows = rows_of(ONE_TARGET, small_cnn(), x, y, BALL, goal=NEAREST)
    before = None
    for state in states(ONE_TARGET, rows, 150):
        if before is not None:
            same = (state.finished_rounds == before.finished_rounds) & (before.round_step > 0)
            slack = 1e-5 * before.objective.abs()
            assert (state.objective <= before.objective + slack)[same].all()
            assert (state.distance <= before.distance).all()
        before = state


def test_the_targeted_form_reaches_the_declared_class() -> None:
    x, y = digits(32)
    target = (y + 1) % 10
    goal, model = Goal("targeted", "next"), small_cnn()
    result = run_and_judge(TARGETED, model, x, y, BALL, goal=goal, target=target)
    assert result.broken.all()
    assert (ModelAccess(model).logits(result.image).argmax(1) == target).all()


@pytest.mark.slow
@pytest.mark.row("A01")
def test_on_the_digits_testbed_it_is_as_near_as_carlini_wagner(testbed: DigitsTestbed) -> None:
    """It always succeeds, and its median distance is within a tenth of that of C&W."""
    model = testbed.train("standard", recipe())
    x, y = testbed.x[:64], testbed.y[:64]
    right = testbed.correct(model, testbed.x)[:64]
    ours, theirs = (
        run_and_judge(attack, model, x, y, BALL, goal=NEAREST)
        for attack in (EVERY_TARGET, CarliniWagner())
    )
    assert ours.broken.all()
    ratio = float(ours.distance[right].median() / theirs.distance[right].median())
    assert 0.9 <= ratio <= 1.1

"""Variants of PGD: rescaled logits, the 8-bit grid, the true gradient, a mean over draws."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.plugin import Traits, cross_entropy
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_8bit import GridPGD, rounded
from plugins.attacks.pgd_eot import ExpectationPGD
from plugins.attacks.pgd_rescaled import RescaledPGD, rescaled_cross_entropy
from tests.fixtures.known_models import (
    digits,
    gaussian,
    interior,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(1, 5)),
    "L2": L2(Fraction(1)),
    "L1": L1(Fraction(2)),
}
each_ball = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS.keys())


class Affine(nn.Module):
    """A network whose logits are multiplied by a factor, plus a constant."""

    def __init__(self, module: nn.Module, factor: float, constant: float) -> None:
        super().__init__()
        self.module, self.factor, self.constant = module, factor, constant

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.module(images) + self.constant
        return logits


def gradient_of_loss(logits: Tensor, label: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rescaled_cross_entropy(leaf, label).sum(), leaf)
    return gradient


# Rescaled logits.


@pytest.mark.parametrize(
    ("factor", "constant"),
    [(1e3, 0), (1e-3, 0), (1, 1e4), (1, -1e4), (1e-30, 0), (1e30, 0), (1e6, 1e4)],
)
def test_the_rescaled_gradient_does_not_depend_on_factor_and_constant(
    factor: float, constant: float
) -> None:
    logits, label = 3 * gaussian(64, 10), torch.arange(64) % 10
    plain = gradient_of_loss(logits, label)
    changed = gradient_of_loss(factor * logits + constant, label)
    rounding = 1e-6 * constant / factor
    assert torch.allclose(changed, plain, rtol=1e-3, atol=1e-6 + abs(rounding))
    assert plain.abs().amax(1).min() > 1e-3


def test_the_rescaled_gradient_is_that_of_the_cross_entropy_at_the_fixed_spread() -> None:
    logits, label = gaussian(64, 10).double(), torch.arange(64) % 10
    logits = logits - logits.mean(1, keepdim=True)
    logits = 10 * logits / logits.amax(1, keepdim=True)
    leaf = logits.clone().requires_grad_()
    (plain,) = torch.autograd.grad(cross_entropy(leaf, label).sum(), leaf)
    assert torch.allclose(gradient_of_loss(logits, label), plain)


@pytest.mark.parametrize("logits", [torch.ones(4, 10), torch.full((4, 10), 1e38)])
def test_equal_logits_have_a_finite_rescaled_gradient(logits: Tensor) -> None:
    assert gradient_of_loss(logits, torch.zeros(4).long()).isfinite().all()


@pytest.mark.parametrize(
    ("factor", "constant"), [(1000, 0), (0.001, 0), (100, 0), (1, 1e4), (-0.0 + 1e4, 0)]
)
def test_rescaled_logits_break_what_pgd_breaks_on_the_plain_network(
    factor: float, constant: float
) -> None:
    x, y = digits(96)
    ball = Linf(Fraction(15, 255))
    plain = run_and_judge(PGD(), small_cnn(), x, y, ball).broken.sum()
    model = Affine(small_cnn(), factor, constant)
    assert run_and_judge(RescaledPGD(), model, x, y, ball).broken.sum() >= plain - 1


def test_large_logits_hide_examples_from_pgd() -> None:
    """The softmax is saturated in float32, so that the gradient is zero."""
    x, y = digits(96)
    ball, model = Linf(Fraction(51, 255)), Affine(small_cnn(), 1000, 0)
    hidden = run_and_judge(PGD(), model, x, y, ball).broken.sum()
    found = run_and_judge(RescaledPGD(), model, x, y, ball).broken.sum()
    assert found > 90
    assert hidden < found / 2


# The 8-bit grid.


class SameStarts(GridPGD):
    """The attack with the random starts of PGD, which are keyed by the name."""

    name = "pgd"


def off_grid(images: Tensor) -> Tensor:
    return (images.double() * 255 - (images.double() * 255).round()).abs()


@pytest.mark.row("A23")
@each_ball
def test_every_iterate_lies_on_the_grid_and_in_the_set(ball: PerturbationSet) -> None:
    x, y = digits(32)
    for adv in states(GridPGD(), rows_of(GridPGD(), small_cnn(), x, y, ball), 12):
        assert off_grid(adv).max() < 1e-4
        assert ball.contains(adv, x).all()


@pytest.mark.row("A23")
@each_ball
def test_the_grid_costs_no_more_than_rounding_afterwards_and_gains_nothing(
    ball: PerturbationSet,
) -> None:
    """From the same starts; rounding once is towards the clean pixel, as the referee rounds."""
    x, y = digits(96)
    small = type(ball)(ball.eps / 2)  # type: ignore[call-arg]
    free, grid = (run_and_judge(a, small_cnn(), x, y, small) for a in (PGD(), SameStarts()))
    change = 255 * (free.image - x)
    image = ((255 * x).round() + (change.abs() + 1e-3).floor() * change.sign()) / 255
    once = (ModelAccess(small_cnn()).logits(image).argmax(1) != y) & free.broken
    assert once.sum() <= grid.broken.sum() <= free.broken.sum()
    assert 20 < grid.broken.sum() < 96


@pytest.mark.parametrize("levels", [1, 2])
def test_the_smallest_balls_are_crossed_in_whole_levels(levels: int) -> None:
    x, weight = (255 * interior(32, 12)).round() / 255, gaussian(12)
    y, ball = torch.ones(32, dtype=torch.int64), Linf(Fraction(levels, 255))
    model = linear(torch.stack([-weight, weight]))
    *_, adv = states(GridPGD(), rows_of(GridPGD(), model, x, y, ball))
    expected = x - levels / 255 * weight.sign().view(1, 1, 1, 12)
    assert torch.allclose(adv, expected, atol=1e-6)


@each_ball
def test_rounding_keeps_clean_pixels_off_the_grid_and_leaves_no_set(ball: PerturbationSet) -> None:
    x = (255 * interior(64, 12)).round() / 255 + 0.3 / 255
    adv = ball.project(x + 0.05 * gaussian(64, 1, 1, 12), x)
    image = rounded(adv, x, ball)
    assert ball.contains(image, x).all()
    assert ((off_grid(image) < 1e-3) | (image == x)).all()
    assert ((image - adv).abs() < 1.01 / 255).all()
    tight = rounded(adv, x, type(ball)(Fraction(1, 10**6)))  # type: ignore[call-arg]
    assert ((tight - x).abs() <= (adv - x).abs() + 1e-6).all()


# Expectation over transformation.


@pytest.mark.row("A15")
def test_the_number_of_draws_is_declared() -> None:
    assert Traits.of(ExpectationPGD()).eot_draws == 32
    assert Traits.of(PGD()).eot_draws == 0


def test_without_randomness_it_is_pgd() -> None:
    x, y = digits(32)
    paths = [
        list(states(a, rows_of(a, small_cnn(), x, y, BALLS["Linf"], name="same"), 5))
        for a in (PGD(), ExpectationPGD())
    ]
    assert all(torch.equal(*pair) for pair in zip(*paths, strict=True))
    assert all(not torch.equal(*pair) for pair in pairwise(paths[0]))

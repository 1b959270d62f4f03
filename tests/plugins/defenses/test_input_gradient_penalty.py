"""Penalties on the input gradient: exact for linear losses, with second-order gradients."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Linf, TrainingBatch, cross_entropy
from plugins.defenses.input_gradient_penalty import (
    l1_penalty_loss,
    l2_penalty_loss,
    loss_and_gradient,
)
from tests.fixtures.protocol_dg import EPS, DigitsTestbed, pgd, recipe, testbed

__all__ = ["testbed"]


def batch(seed: int = 0) -> TrainingBatch:
    """Eight images and a smooth network in double precision."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x, y = torch.rand(8, 1, 3, 3).double(), torch.randint(4, (8,))
    return TrainingBatch(net, x, y, x)


# --- D20: adversarial training of a linear model is L1 regularisation ---------------------------


def linear_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [500, 30], y in {-1, 1} and w [30], in double precision."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 30, generator=draw).double()
    y = torch.where(torch.rand(500, generator=draw) < 0.5, -1.0, 1.0).double()
    return x, y, torch.randn(30, generator=draw).double()


@pytest.mark.row("D20")
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.3])
def test_the_worst_linear_loss_is_the_loss_plus_eps_times_the_one_norm(eps: float) -> None:
    x, y, w = linear_case(0)
    slope = -y[:, None] * w
    worst = -(y * ((x + eps * slope.sign()) @ w))
    assert (worst - (-(y * (x @ w)) + eps * w.abs().sum())).abs().max() < 1e-12
    logistic = F.softplus(-(y * ((x + eps * slope.sign()) @ w)))
    closed = F.softplus(-(y * (x @ w) - eps * w.abs().sum()))
    assert (logistic - closed).abs().max() < 1e-12
    other = x + eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 1)
    assert (F.softplus(-(y * (other @ w))) <= closed + 1e-12).all(), "nothing in the ball is worse"


@pytest.mark.row("D20")
def test_its_gradient_for_the_weights_is_eps_times_their_sign() -> None:
    x, y, w = linear_case(1)
    w.requires_grad_()
    eps = 0.1
    worst = (-(y * ((x - eps * y[:, None] * w.detach().sign()) @ w))).mean()
    plain = (-(y * (x @ w))).mean()
    (found,) = torch.autograd.grad(worst, w)
    (before,) = torch.autograd.grad(plain, w)
    assert (found - before - eps * w.sign()).abs().max() < 1e-12


@pytest.mark.row("D20")
def test_adversarial_training_makes_a_linear_model_sparser(testbed: DigitsTestbed) -> None:
    """5 against 7: the share of the weights' mass on most pixels shrinks."""
    rows = (testbed.y == 5) | (testbed.y == 7)
    x, y = (
        testbed.x[rows].flatten(1).double(),
        torch.where(testbed.y[rows] == 5, -1.0, 1.0).double(),
    )

    def trained_weights(eps: float) -> Tensor:
        w = torch.zeros(64, dtype=torch.float64, requires_grad=True)
        b = torch.zeros((), dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([w, b], 0.02)
        for _ in range(1500):
            loss = F.softplus(-(y * (x @ w + b) - eps * w.abs().sum())).mean()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        return w.detach()

    def pixels(w: Tensor) -> float:
        """(sum |w|)^2 / sum w^2: as many as share the mass."""
        return float(w.abs().sum() ** 2 / w.square().sum())

    assert pixels(trained_weights(0.15)) < 0.6 * pixels(trained_weights(0.0))


# --- D21 and D22 ---------------------------------------------------------------------------------


@pytest.mark.row("D21", "D22")
@pytest.mark.parametrize("loss", [l1_penalty_loss, l2_penalty_loss])
def test_without_the_penalty_it_is_clean_training(loss: object) -> None:
    one = batch()
    found = loss(one, strength=0.0)  # type: ignore[operator]
    assert torch.equal(found, cross_entropy(one.model(one.x), one.y))


@pytest.mark.row("D21")
def test_for_a_linear_loss_the_penalty_is_adversarial_training_exactly() -> None:
    """One signed step is the worst point, and the loss there equals the penalised one."""
    torch.manual_seed(3)
    x, y = 0.3 + 0.4 * torch.rand(40, 1, 3, 3), torch.randint(2, (40,))
    weight = torch.randn(9)
    eps = 0.2
    ball = Linf(EPS)

    def linear_loss(images: Tensor) -> Tensor:
        return (1 - 2 * y) * (images.flatten(1) @ weight)

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(linear_loss(leaf).sum(), leaf)
    worst = linear_loss(x + eps * ball.steepest(slope, x))
    penalised = linear_loss(x) + eps * slope.flatten(1).abs().sum(1)
    assert torch.allclose(worst, penalised, atol=1e-5)


@pytest.mark.row("D21")
def test_the_penalty_is_the_one_norm_of_each_image_s_gradient() -> None:
    one = batch()
    _, slope = loss_and_gradient(one)
    for i in range(len(one.x)):
        leaf = one.x[i : i + 1].clone().requires_grad_()
        (own,) = torch.autograd.grad(cross_entropy(one.model(leaf), one.y[i : i + 1]).sum(), leaf)
        assert torch.allclose(slope[i], own.flatten(), atol=1e-12)
    added = l1_penalty_loss(one, 0.5) - l1_penalty_loss(one, 0.0)
    assert torch.allclose(added, 0.5 * slope.abs().sum(1), atol=1e-12)
    squared = l2_penalty_loss(one, 0.5) - l2_penalty_loss(one, 0.0)
    assert torch.allclose(squared, 0.25 * slope.square().sum(1), atol=1e-12)


@pytest.mark.row("D22")
@pytest.mark.parametrize("loss", [l1_penalty_loss, l2_penalty_loss])
def test_the_second_order_gradient_agrees_with_finite_differences(loss: object) -> None:
    one = batch(5)
    weight = one.model.get_parameter("1.weight")

    def total() -> Tensor:
        mean: Tensor = loss(one, strength=2.0).mean()  # type: ignore[operator]
        return mean

    (slope,) = torch.autograd.grad(total(), weight)
    step = 1e-5
    for place in [(0, 0), (3, 4), (6, 8)]:
        with torch.no_grad():
            weight[place] += step
        up = float(total().detach())
        with torch.no_grad():
            weight[place] -= 2 * step
        down = float(total().detach())
        with torch.no_grad():
            weight[place] += step
        assert math.isclose((up - down) / (2 * step), float(slope[place]), rel_tol=1e-5)


@pytest.mark.row("D21", "D22")
@pytest.mark.slow
def test_the_penalty_adds_robustness_and_costs_little_accuracy(testbed: DigitsTestbed) -> None:
    """On this testbed .976 clean and .262 against .048 for L1 at .15."""
    standard = testbed.train("standard", recipe())
    sparse = testbed.train("flat", recipe(partial(l1_penalty_loss, strength=0.15)))
    double = testbed.train("double", recipe(partial(l2_penalty_loss, strength=1.0)))
    bare = testbed.robust(standard, pgd(10))
    assert testbed.robust(sparse, pgd(10)) > bare + 0.12
    assert testbed.robust(double, pgd(10)) > bare + 0.05
    for model in (sparse, double):
        assert testbed.clean(model) > testbed.clean(standard) - 0.02

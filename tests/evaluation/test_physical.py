"""Finished adversarial images behind a nuisance: EOT against none, and the destruction rate."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

import bench
from bench.engine.problem import attack_once
from bench.evaluation.physical import destruction_rate, labels_over_draws
from bench.plugin import Fraction, Linf, Nuisance, print_and_scan
from bench.registry.registry import Registry
from tests.benchmarks.physical import confidence_by_area
from tests.fixtures.known_models import digits, small_cnn
from tests.plugins.attacks.test_shared_gradient import fashion

EPS = Fraction(1, 5)
FEW = 64


@cache
def adversarial(name: str = "pgd", eps: Fraction = EPS) -> tuple[Tensor, Tensor, Tensor]:
    """64 digits, the labels that the network predicts, and all steps of an attack on them."""
    x, _ = digits(FEW)
    y = small_cnn()(x).argmax(1)
    attack = Registry.without_submissions().find("attack", name).value
    row = torch.arange(FEW)
    return x, y, attack_once(attack, small_cnn(), x, y, Linf(eps), seed=0, example=row)


@pytest.mark.row("P07")
def test_the_identity_destroys_no_example_and_every_channel_a_share_of_them() -> None:
    x, y, adv = adversarial()
    assert destruction_rate(small_cnn(), x, adv, y, Nuisance()) == 0
    assert destruction_rate(small_cnn(), x, adv, y, print_and_scan(0)) == 0
    rates = [destruction_rate(small_cnn(), x, adv, y, print_and_scan(s)) for s in (0.25, 1, 3)]
    assert all(0 <= rate <= 1 for rate in rates) and rates[-1] > 0


@pytest.mark.row("P07")
def test_only_images_that_were_right_and_are_fooled_count() -> None:
    """By hand: of three images one was wrong before and one is not fooled."""
    black, white = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    dark = torch.full_like(black, 0.45)

    class Bright(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            mean = images.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    model, y = Bright(), torch.tensor([1, 1, 1])
    x, adv = torch.cat([white, black, white]), torch.cat([dark, dark, white])
    light = Nuisance(brightness=0.1)
    rate = destruction_rate(model, x, adv, y, light, draws=2000)
    assert abs(rate - 0.25) < 0.03, "of draws in [-0.1, 0.1) a quarter is above 0.05"
    assert math.isnan(destruction_rate(model, x[1:], adv[1:], y[1:], light))


@pytest.mark.row("P06", "G14")
def test_fresh_draws_are_fixed_by_their_seed() -> None:
    x, _, adv = adversarial()
    nuisance = print_and_scan()
    found = labels_over_draws(small_cnn(), adv, nuisance, draws=10)
    assert found.shape == (10, FEW)
    assert torch.equal(found, labels_over_draws(small_cnn(), adv, nuisance, draws=10))
    assert not torch.equal(found, labels_over_draws(small_cnn(), adv, nuisance, draws=10, seed=1))
    alone = labels_over_draws(small_cnn(), x, Nuisance(), draws=3)
    assert torch.equal(alone, small_cnn()(x).argmax(1).expand(3, -1))


@pytest.mark.row("RP13")
def test_confidence_in_the_true_class_falls_with_the_area_of_a_patch() -> None:
    model, _, (x, y) = fashion()
    right = model(x).argmax(1) == y
    x, y = x[right][:60], y[right][:60]
    found = confidence_by_area(model, x, y, (0, 2, 5, 9))
    assert found[0] == pytest.approx(float(model(x).softmax(1).gather(1, y[:, None]).mean()))
    assert found == sorted(found, reverse=True) and found[-1] < 0.5 * found[0], found


@pytest.mark.slow
@pytest.mark.row("P06")
def test_eot_reaches_the_target_on_far_more_fresh_draws_than_an_attack_without() -> None:
    """Rate over 100 fresh draws, Fashion-MNIST, target the next class, Linf .3.

    Measured: .75 with EOT; .15 for PGD, which knows of no nuisance.
    """
    model, _, (x, y) = fashion()
    x, y = x[:FEW], y[:FEW]
    nuisance = Nuisance(shift=1.5, smallest=0.9, largest=1.1, degrees=22.5, draws=8)
    rates = []
    for declared in (nuisance, None):
        run = bench.attack(model, x, y, "pgd", eps="3/10", target_rule="next", nuisance=declared)
        labels = labels_over_draws(model, run.images, nuisance)
        rates.append(float((labels == (y + 1) % 10).double().mean()))
    eot, without = rates
    assert eot > 0.6 and eot > 3 * without, rates

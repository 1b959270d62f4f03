"""The submission `gaussian-noise`: no defense, with a mean gradient that converges."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.plugin import cross_entropy
from bench.registry.loader import module_from_source
from tests.fixtures.images import EPS, accuracy, held_out

FOLDER = Path(__file__).parents[3] / "submissions" / "gaussian-noise"
SOURCE = module_from_source((FOLDER / "plugin.py").read_bytes(), FOLDER / "plugin.py")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(sigma: float) -> nn.Sequential:
    """The submitted network with its own weights and another noise."""
    module: nn.Sequential = SOURCE.noisy_cnn((1, 8, 8), 10)
    module.load_state_dict(load_file(FOLDER / "weights.safetensors"))
    for layer in module.modules():
        if isinstance(layer, SOURCE.GaussianNoise):
            layer.sigma = sigma
    return module.eval().requires_grad_(False)


def slope(module: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """The gradient of the loss, averaged over `draws` draws."""
    leaf = x.repeat(draws, 1, 1, 1).requires_grad_()
    loss = cross_entropy(module(leaf), y.repeat(draws)).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient.view(draws, *x.shape).mean(0)


@pytest.mark.row("D23")
def test_noise_of_deviation_zero_is_the_network_without_noise_layers() -> None:
    x, _ = held_out(50)
    module = network(0.0)
    bare = copy.deepcopy(module)
    for place in reversed([i for i, m in enumerate(bare) if isinstance(m, SOURCE.GaussianNoise)]):
        del bare[place]
    assert len(bare) == len(module) - 2, "after the first convolution and before the last layer"
    assert torch.equal(module(x), bare(x))
    assert not torch.equal(network(0.05)(x), bare(x))


@pytest.mark.row("D23")
def test_the_noise_has_its_deviation_and_new_draws_on_every_call() -> None:
    layer, zeros = SOURCE.GaussianNoise(0.25), torch.zeros(200, 50)
    one, two = layer(zeros), layer(zeros)
    assert float(one.std()) == pytest.approx(0.25, rel=0.03) and abs(float(one.mean())) < 0.01
    assert abs(float((one * two).mean())) < 0.005 * 0.25
    assert torch.equal(layer(zeros + 3) > 0, torch.ones_like(zeros).bool())


@pytest.mark.row("D23")
def test_the_mean_gradient_over_draws_converges() -> None:
    """The error of a mean falls like one over the root of the number of draws."""
    x, y = held_out(40)
    module = network(0.25)
    settled = slope(module, x, y, 800)
    one, many = (float((slope(module, x, y, draws) - settled).norm()) for draws in (1, 64))
    assert 5 < one / many < 12


@pytest.mark.row("D23")
def test_a_little_noise_at_test_time_is_no_defense() -> None:
    x, y = held_out()
    left = {}
    for sigma in (0.0, 0.05):
        module = network(sigma)
        adv = (x + float(EPS) * slope(module, x, y, 10).sign()).clamp(0, 1)
        left[sigma] = sum(accuracy(module, adv, y) for _ in range(10)) / 10
        assert accuracy(module, x, y) > 0.9
    assert left[0.0] < 0.6 and abs(left[0.05] - left[0.0]) < 0.05

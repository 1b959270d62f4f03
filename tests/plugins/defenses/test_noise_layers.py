"""Noise layers and randomised adversarial training: without noise they are the plain network."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.plugin import Defense, Recipe
from bench.registry.registry import Registry
from plugins.defenses import noise_layers, randomised_training
from plugins.defenses._cnn import cnn
from plugins.defenses._noise_layer import GaussianNoise
from plugins.defenses.noise_layers import PLACES
from tests.fixtures.known_models import digits

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.load(Path(__file__).parents[3] / "submissions")


def seeded(make: partial[nn.Sequential]) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make(SHAPE, 10).eval()


@pytest.mark.row("D23")
def test_noise_is_normal_with_its_deviation_in_train_and_eval_mode() -> None:
    hidden = torch.full((400, 100), 3.0)
    torch.manual_seed(0)
    for layer in (GaussianNoise(0.25).eval(), GaussianNoise(0.25).train()):
        drawn = layer(hidden) - 3
        assert abs(float(drawn.mean())) < 4 * 0.25 / 200
        assert abs(float(drawn.std()) - 0.25) < 0.005
    assert not torch.equal(GaussianNoise(0.25)(hidden), GaussianNoise(0.25)(hidden))


@pytest.mark.row("D23", "D24")
@pytest.mark.parametrize(
    "model",
    [
        *(partial(noise_layers.noisy_cnn, place=place) for place in PLACES.values()),
        randomised_training.noisy_cnn,
    ],
    ids=[*PLACES, "input"],
)
def test_without_noise_the_network_is_the_plain_one(model: partial[nn.Sequential]) -> None:
    x, _ = digits(32)
    plain = seeded(partial(cnn))
    assert torch.equal(seeded(partial(model, sigma=0.0))(x), plain(x))
    assert not torch.equal(seeded(partial(model, sigma=0.05))(x), plain(x))


@pytest.mark.row("D23")
@pytest.mark.parametrize(("where", "before"), [("first", nn.Conv2d), ("dense", nn.ReLU)])
def test_the_noise_is_at_its_declared_layer(where: str, before: type[nn.Module]) -> None:
    parts = list(noise_layers.noisy_cnn(SHAPE, 10, place=PLACES[where], sigma=0.05))
    (place,) = (i for i, part in enumerate(parts) if isinstance(part, GaussianNoise))
    assert isinstance(parts[place - 1], before)
    dense = [i for i, part in enumerate(parts) if isinstance(part, nn.Linear)]
    assert (dense[0] < place < dense[1]) == (where == "dense")


@pytest.mark.row("D23")
def test_the_mean_over_draws_converges() -> None:
    x, _ = digits(16)
    model = seeded(partial(noise_layers.noisy_cnn, place=PLACES["dense"], sigma=0.05))
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([model(x) for _ in range(400)])
        plain = nn.Sequential(*(part for part in model if not isinstance(part, GaussianNoise)))(x)
    error = drawn.std(0) / 20
    assert ((drawn.mean(0) - plain).abs() <= 5 * error).all()


def recipe(registry: Registry, name: str) -> Recipe:
    found: Defense = registry.find("defense", name).value
    assert found.recipe is not None
    return found.recipe


@pytest.mark.row("D24")
def test_without_noise_it_is_adversarial_training(registry: Registry) -> None:
    ours, plain = recipe(registry, "randomised-training"), recipe(registry, "pgd-training")
    same = dataclasses.replace(ours, model=plain.model, options=plain.options)
    assert same == plain


@pytest.mark.row("D23", "D24")
@pytest.mark.parametrize(
    "name", ["noise-first", "noise-dense", "gaussian-noise", "randomised-training"]
)
def test_noise_is_declared(registry: Registry, name: str) -> None:
    assert registry.find("defense", name).value.randomness is not None

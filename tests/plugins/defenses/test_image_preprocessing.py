"""Preprocessing defenses on Fashion-MNIST and CIFAR-10 images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import UnavailableError
from bench.data import datasets
from bench.data.image_rows import to_float
from bench.engine.problem import attack_once
from bench.plugin import Linf, Recipe, cross_entropy, straight_through
from bench.registry.registry import Registry
from bench.training.tasks import build_trained
from plugins.attacks.pgd import PGD
from plugins.defenses._losses import clean_loss
from plugins.defenses._preprocessing import PreprocessedModel
from plugins.defenses._residual_blocks import preact_resnet18
from plugins.defenses.cifar10_training import trained
from plugins.defenses.crops import center_crop, random_crop
from plugins.defenses.jpeg import jpeg_compress
from plugins.defenses.resize_pad import random_resize_pad
from plugins.defenses.shield import random_block_quality
from plugins.defenses.total_variation import ITERATIONS, KEPT, WEIGHT, denoise
from tests.fixtures.images import first_of, held_out
from tests.fixtures.known_models import run_and_judge

N = 128
BALL = Linf(Fraction(16, 255))
pytestmark = pytest.mark.slow


class Images(NamedTuple):
    network: nn.Module
    x: Tensor
    y: Tensor

    def right(self, change: Callable[[Tensor], Tensor], images: Tensor) -> float:
        with torch.no_grad():
            answer = self.network(change(images)).argmax(1)
        return float((answer == self.y).double().mean())

    def crafted(self, module: nn.Module, ball: Linf = BALL) -> Tensor:
        keys = torch.arange(len(self.x))
        return attack_once(PGD(steps=20), module, self.x, self.y, ball, seed=0, example=keys)


@pytest.fixture(scope="module")
def fashion() -> Images:
    """A network trained on 5,000 images for four epochs."""
    whole = Registry.load(Path("no-such-folder")).datasets["fashion-mnist"].value
    try:
        train, test = datasets.load_dataset(whole).train, datasets.first_examples(whole, N)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert train is not None
    images = to_float(torch.from_numpy(train.images[:5000].copy()))
    labels = torch.from_numpy(train.labels[:5000].copy())
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(4):
            for batch in torch.randperm(5000).view(-1, 50):
                optimiser.zero_grad()
                loss = cross_entropy(network(images[batch]), labels[batch]).mean()
                torch.autograd.backward(loss)
                optimiser.step()
    network.eval().requires_grad_(False)
    return Images(network, test.tensor(), torch.from_numpy(test.labels.copy()))


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The network of `cifar-standard`, narrow, after eight epochs of 10,000 images."""
    registry = Registry.load(Path("no-such-folder"))
    registration = registry.find("defense", "cifar-standard")
    recipe = Recipe(
        partial(preact_resnet18, width=8), clean_loss, epochs=8, rate=4e-3, schedule="cyclic"
    )
    narrow = dataclasses.replace(
        registration.value, recipe=recipe, build=partial(trained, make=recipe.model)
    )
    registry.defenses[narrow.name] = dataclasses.replace(registration, value=narrow)
    try:
        some = first_of(registry.datasets["cifar10"].value, 10_000)
    except UnavailableError as error:
        pytest.skip(str(error))
    network = build_trained(registry, narrow.name, some, tmp_path_factory.mktemp("colour")).build()
    return Images(network, *held_out(256, some))


def jpeg(images: Tensor) -> Tensor:
    return jpeg_compress(images, 75)


def smooth(images: Tensor) -> Tensor:
    return denoise(images, WEIGHT, KEPT, ITERATIONS)


def moved(images: Tensor) -> Tensor:
    """Padded by two pixels and cropped back to the network's size."""
    return random_resize_pad(images, 30)[:, :, 1:29, 1:29]


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        pytest.param(jpeg, 0.05, marks=pytest.mark.row("F01")),
        pytest.param(random_block_quality, 0.05, marks=pytest.mark.row("F02")),
        pytest.param(random_crop, 0.5, marks=pytest.mark.row("F03")),
        pytest.param(smooth, 0.25, marks=pytest.mark.row("F05")),
        pytest.param(center_crop, 0.4, marks=pytest.mark.row("F13")),
        pytest.param(moved, 0.35, marks=pytest.mark.row("D31")),
    ],
)
def test_preprocessing_keeps_the_shape_and_most_predictions(
    fashion: Images, change: Callable[[Tensor], Tensor], lost: float
) -> None:
    torch.manual_seed(0)
    assert change(fashion.x).shape == fashion.x.shape
    plain = fashion.right(lambda images: images, fashion.x)
    assert plain > 0.75
    assert fashion.right(change, fashion.x) > plain - lost


@pytest.mark.row("F13")
def test_a_crop_is_more_robust_to_the_unaware_attack_than_to_the_adaptive_one(
    fashion: Images,
) -> None:
    unaware = fashion.crafted(fashion.network)
    aware = fashion.crafted(PreprocessedModel(fashion.network, center_crop))
    assert fashion.right(center_crop, unaware) > fashion.right(center_crop, aware) + 0.1


@pytest.mark.row("F01")
def test_jpeg_removes_unaware_attacks_and_half_as_many_adaptive_ones(
    colour: Images,
) -> None:
    """The adaptive attack uses the BPDA approximation; without a defense none is removed."""
    for radius in (2, 3):
        small = Linf(Fraction(radius, 255))
        unaware = colour.crafted(colour.network, small)
        plain, helped = (
            colour.right(preprocess, unaware) for preprocess in (lambda images: images, jpeg)
        )
        aware = PreprocessedModel(colour.network, straight_through(jpeg))
        attack = PGD(steps=40, rate=0.25, restarts=3)
        broken = run_and_judge(attack, aware, colour.x, colour.y, small).broken
        robust = float((~broken).double().mean())
        assert plain < 0.06
        assert helped > robust + 0.08
        assert helped > 1.7 * robust


@pytest.mark.row("F13")
def test_a_crop_removes_unaware_attacks_and_no_adaptive_ones(
    colour: Images,
) -> None:
    small = Linf(Fraction(2, 255))
    helped = colour.right(center_crop, colour.crafted(colour.network, small))
    aware = PreprocessedModel(colour.network, center_crop)
    broken = run_and_judge(PGD(steps=40, rate=0.25), aware, colour.x, colour.y, small).broken
    assert helped > 0.2
    assert float((~broken).double().mean()) < 0.1


@pytest.mark.row("F01")
def test_jpeg_gains_little_against_a_large_perturbation(fashion: Images) -> None:
    unaware = fashion.crafted(fashion.network)
    aware = fashion.crafted(PreprocessedModel(fashion.network, straight_through(jpeg)))
    for images in (unaware, aware):
        assert fashion.right(jpeg, images) < fashion.right(jpeg, fashion.x) - 0.3

"""Cases of the benchmarks: a network, examples and a ball; weights are cached by recipe."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.batches import FRESH_ROWS
from bench.core.folders import cache_folder
from bench.data import datasets
from bench.engine.model_access import freeze
from bench.engine.problem import attack_once
from bench.plugin import Linf
from bench.referee.fresh_model import FreshModel
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from plugins.attacks.pgd import PGD
from plugins.defenses._cnn import cnn

TRAINING_IMAGES = 1297  # of 1,797; the other 500 are attacked
WIDTH = 16


class Case(NamedTuple):
    """A frozen network, its examples and the ball in which it is attacked."""

    name: str
    model: nn.Module
    x: Tensor
    """[n, C, H, W]."""
    y: Tensor
    """[n]."""
    ball: Linf
    clean_logits: Tensor
    """[n, K], computed once and given to all attacks."""

    @property
    def correct(self) -> Tensor:
        """[n] bool: classified correctly on the clean image."""
        return self.clean_logits.argmax(1) == self.y

    def at(self, index: Tensor) -> Case:
        """The same case with the examples at an index [m]."""
        return self._replace(
            x=self.x[index], y=self.y[index], clean_logits=self.clean_logits[index]
        )

    def first(self, count: int) -> Case:
        """The same case with its first `count` examples."""
        return self._replace(
            x=self.x[:count], y=self.y[:count], clean_logits=self.clean_logits[:count]
        )

    def on(self, device: str) -> Case:
        """The same case on a device."""
        if device == "cpu":
            return self
        model = copy.deepcopy(self.model).to(device)
        return frozen_case(self.name, model, self.x.to(device), self.y.to(device), self.ball)


def frozen_case(name: str, model: nn.Module, x: Tensor, y: Tensor, ball: Linf) -> Case:
    """A case with a frozen model and its logits of the clean images [n, C, H, W]."""
    groups = range(-(-len(x) // FRESH_ROWS))
    return Case(name, freeze(model), x, y, ball, FreshModel(model).answer(x, groups).logits)


class Residual(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), arXiv:1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, H, W] to [n, outputs, H / stride, W / stride]."""
        output: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return output


def resnet18(shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """ResNet-18 with a 3 x 3 stem and a quarter of its channels: 16, 32, 64, 128."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
    ]  # fmt: skip
    inputs = WIDTH
    for stage in range(4):
        outputs = WIDTH * 2**stage
        layers.append(Residual(inputs, outputs, 2 if stage else 1))
        layers.append(Residual(outputs, outputs, 1))
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Recipe:
    """Training settings of a network; its `repr` names the weights file."""

    network: str
    """A key of NETWORKS."""
    radius: Fraction
    """Radius of the attack in training; the radius of the evaluation is in RADIUS."""
    epochs: int
    rate: float
    inner: int = 0
    """PGD steps on each training batch; 0: training on clean images."""
    batch: int = 64
    seed: int = 0

    @property
    def file(self) -> Path:
        """Path of the cached weights."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:16]
        return cache_folder() / "benchmarks" / f"{self.network}-{digest}.safetensors"


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits": lambda: cnn((1, 8, 8), 10),
    "resnet18": resnet18,
}
RADIUS = {"digits": Fraction(1, 5), "resnet18": Fraction(16, 255)}
RECIPES = {
    "digits-std": Recipe("digits", Fraction(1, 5), epochs=30, rate=2e-3),
    "digits-adv": Recipe("digits", Fraction(1, 5), epochs=30, rate=2e-3, inner=7),
    "resnet18-std": Recipe("resnet18", Fraction(16, 255), epochs=3, rate=2e-3),
    "resnet18-adv": Recipe("resnet18", Fraction(8, 255), epochs=3, rate=3e-3, inner=3),
}


def images(network: str) -> tuple[Tensor, Tensor]:
    """All 1,797 handwritten digits, shuffled: [n, 1, 8, 8] or, in colour, [n, 3, 32, 32]."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] / 16
    if network == "resnet18":
        grey = F.interpolate(grey, 32, mode="bilinear").expand(-1, 3, -1, -1)
    # The file is sorted by writer: a shuffle puts images of every writer in both parts.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(grey)))
    y = torch.from_numpy(digits.target.astype(np.int64))
    return ((grey * 255).round() / 255)[order], y[order]


def trained_weights(recipe: Recipe) -> dict[str, Tensor]:
    """The weights of a recipe, from the cache or trained now."""
    if not recipe.file.is_file():
        recipe.file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(train(recipe).state_dict(), recipe.file)
    return safetensors.torch.load_file(recipe.file)


def train(recipe: Recipe, device: str = "cpu") -> nn.Module:
    """Train with Adam and a cosine rate on clean images or on their PGD examples."""
    x, y = (part[:TRAINING_IMAGES].to(device) for part in images(recipe.network))
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model = NETWORKS[recipe.network]().to(device)
        optimiser = torch.optim.Adam(model.parameters(), recipe.rate)
        batches = len(x) // recipe.batch
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * batches)
        for epoch in range(recipe.epochs):
            for batch in torch.randperm(len(x))[: batches * recipe.batch].view(-1, recipe.batch):
                rows = batch.to(device)
                train_batch(recipe, model, optimiser, x[rows], y[rows], rows + epoch * len(x))
                schedule.step()
    return model


def train_batch(
    recipe: Recipe, model: nn.Module, optimiser: torch.optim.Optimizer,
    x: Tensor, y: Tensor, key: Tensor,
) -> None:  # fmt: skip
    """One step on images x [n, C, H, W]; `key` [n] seeds the random starts of PGD."""
    if recipe.inner:
        attack = PGD(steps=recipe.inner, rate=2.5 / recipe.inner)
        x = attack_once(attack, model, x, y, Linf(recipe.radius), seed=recipe.seed, example=key)
    model.train()
    optimiser.zero_grad()
    torch.autograd.backward(F.cross_entropy(model(x), y))
    optimiser.step()


@functools.cache
def load_case(name: str) -> Case:
    """The case of this name, with a network of a recipe or a published one."""
    if name not in RECIPES:
        return published_case(name)
    recipe = RECIPES[name]
    model = NETWORKS[recipe.network]()
    model.load_state_dict(trained_weights(recipe))
    x, y = images(recipe.network)
    return frozen_case(
        name, model, x[TRAINING_IMAGES:], y[TRAINING_IMAGES:], Linf(RADIUS[recipe.network])
    )


class Published(NamedTuple):
    """A registered defense with published weights, and where it is attacked."""

    defense: str
    dataset: str
    radius: Fraction
    examples: int


PUBLISHED = {
    "resnet2b": Published("resnet2b-cifar10", "cifar10", Fraction(2, 255), 300),
    "convex-mnist": Published("convex-mnist", "mnist", Fraction(1, 10), 10_000),
}


def published_case(name: str) -> Case:
    """A published network on the first test images; UnavailableError without its files."""
    source = PUBLISHED[name]
    registry = Registry.load()
    dataset = registry.datasets[source.dataset].value
    model = DefenseBuilder(registry, source.defense, dataset).build()
    examples = datasets.first_examples(dataset, source.examples)
    y = torch.tensor(examples.labels)
    return frozen_case(name, model, examples.tensor(), y, Linf(source.radius))

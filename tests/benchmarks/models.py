"""The networks that the benchmarks attack: trained once by a recipe, kept by its digest."""

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

from bench.data import datasets
from bench.engine.cell_spec import GROUP
from bench.engine.model_access import freeze
from bench.engine.problem import attack_once
from bench.plugin import Linf
from bench.referee.fresh_model import FreshModel
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from plugins.attacks.pgd import PGD
from plugins.defenses._cnn import cnn

TAUGHT = 1297  # images of the 1,797; the other 500 are attacked
WIDTH = 16


class World(NamedTuple):
    """A network and what it is attacked on."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Linf
    clean: Tensor
    """[n, K]: the answers to the clean images, given to both sides for nothing."""

    @property
    def right(self) -> Tensor:
        """[n] bool."""
        return self.clean.argmax(1) == self.y

    def first(self, count: int) -> World:
        """The same with the first `count` examples."""
        return self._replace(x=self.x[:count], y=self.y[:count], clean=self.clean[:count])

    def on(self, device: str) -> World:
        """The same on a device."""
        if device == "cpu":
            return self
        return opened(self.name, copy.deepcopy(self.model).to(device), self.x.to(device),
                      self.y.to(device), self.ball)  # fmt: skip


def opened(name: str, model: nn.Module, x: Tensor, y: Tensor, ball: Linf) -> World:
    """A world whose model is frozen and has answered the clean images, 64 at a time."""
    groups = range(-(-len(x) // GROUP))
    return World(name, freeze(model), x, y, ball, FreshModel(model).answer(x, groups).logits)


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
        answer: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return answer


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
    """How a network comes about; its text is the name of its weights."""

    network: str
    """A key of NETWORKS."""
    radius: Fraction
    """Of the attack on each batch; what is attacked lies in RADIUS."""
    epochs: int
    rate: float
    inner: int = 0
    """Steps of the attack on each batch; 0: taught on clean images."""
    batch: int = 64
    seed: int = 0

    @property
    def file(self) -> Path:
        """Where the weights are kept."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:16]
        return datasets.cache_folder() / "benchmarks" / f"{self.network}-{digest}.safetensors"


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
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] / 16
    if network == "resnet18":
        grey = F.interpolate(grey, 32, mode="bilinear").expand(-1, 3, -1, -1)
    # The file is sorted by writer: the last 500 images are of hands never seen before.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(grey)))
    y = torch.from_numpy(bunch.target.astype(np.int64))
    return ((grey * 255).round() / 255)[order], y[order]


def weights(recipe: Recipe) -> dict[str, Tensor]:
    """The weights of a recipe; taught where they are not there yet."""
    if not recipe.file.is_file():
        recipe.file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(taught(recipe).state_dict(), recipe.file)
    return safetensors.torch.load_file(recipe.file)


def taught(recipe: Recipe) -> nn.Module:
    """Adam with a cosine rate on the clean images, or on what PGD makes of them."""
    x, y = (part[:TAUGHT] for part in images(recipe.network))
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model = NETWORKS[recipe.network]()
        optimiser = torch.optim.Adam(model.parameters(), recipe.rate)
        each = len(x) // recipe.batch
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * each)
        for epoch in range(recipe.epochs):
            for batch in torch.randperm(len(x))[: each * recipe.batch].view(-1, recipe.batch):
                learn(recipe, model, optimiser, x[batch], y[batch], batch + epoch * len(x))
                schedule.step()
    return model


def learn(
    recipe: Recipe, model: nn.Module, optimiser: torch.optim.Optimizer,
    x: Tensor, y: Tensor, key: Tensor,
) -> None:  # fmt: skip
    """One batch; `key` [n] seeds the random starts."""
    if recipe.inner:
        attack = PGD(steps=recipe.inner, rate=2.5 / recipe.inner)
        x = attack_once(attack, model, x, y, Linf(recipe.radius), seed=recipe.seed, example=key)
    model.train()
    optimiser.zero_grad()
    torch.autograd.backward(F.cross_entropy(model(x), y))
    optimiser.step()


@functools.cache
def world(name: str) -> World:
    """A network of this name, frozen, and its examples: a recipe's, or a published one."""
    if name not in RECIPES:
        return published(name)
    recipe = RECIPES[name]
    model = NETWORKS[recipe.network]()
    model.load_state_dict(weights(recipe))
    x, y = images(recipe.network)
    return opened(name, model, x[TAUGHT:], y[TAUGHT:], Linf(RADIUS[recipe.network]))


class Published(NamedTuple):
    """A network whose weights others trained, and the board it is attacked on."""

    defense: str
    dataset: str
    radius: Fraction
    examples: int


PUBLISHED = {
    "resnet2b": Published("resnet2b-cifar10", "cifar10", Fraction(2, 255), 300),
    "convex-mnist": Published("convex-mnist", "mnist", Fraction(1, 10), 10_000),
}


def published(name: str) -> World:
    """That network on the first test images; raises UnavailableError without its files."""
    chosen = PUBLISHED[name]
    registry = Registry.load()
    dataset = registry.datasets[chosen.dataset].value
    model = DefenseBuilder(registry, chosen.defense, dataset).build()
    examples = datasets.first_examples(dataset, chosen.examples)
    y = torch.tensor(examples.labels)
    return opened(name, model, examples.tensor(), y, Linf(chosen.radius))

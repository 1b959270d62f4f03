"""Protocol DG: the digits, a network of two dense layers, Adam; the bed of the measured rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import data
from bench.plugin import Attack, Dataset, Inner, Lesson, Linf, PerturbationSet, Recipe, Split
from bench.problem import craft
from bench.shelf import prepared
from plugins.attacks.pgd import PGD
from tests.lessons import DIGITS, defense, on_adv, on_clean, registry

EPS = Fraction(3, 20)
SEVEN = Inner("pgd", Linf(EPS), {"steps": 7, "rate": 2.5 / 7})
Loss = Callable[[Lesson], Tensor]


def mlp(shape: tuple[int, int, int], classes: int, hidden: int = 128) -> nn.Sequential:
    """64 - hidden - hidden - 10 with ReLU."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


def taught(
    folder: Path,
    loss: Loss = on_clean,
    inner: Inner | None = None,
    *,
    hidden: int = 128,
    epochs: int = 60,
) -> nn.Module:
    """The network after Adam at 1e-3 on batches of 64; trained once a folder."""
    name = f"dg-{loss.__name__.replace('_', '-')}-{hidden}-{epochs}-{inner is not None}".lower()
    recipe = Recipe(
        lambda shape, classes: mlp(shape, classes, hidden), loss, inner, epochs=epochs, batch=64
    )
    return prepared(registry(defense(name, recipe)), name, DIGITS, folder).build()


def adversarial(folder: Path, hidden: int = 128) -> nn.Module:
    """The same, trained on what seven steps of PGD make of each batch."""
    return taught(folder, on_adv, SEVEN, hidden=hidden)


def held_out(rows: int = 500) -> tuple[Tensor, Tensor]:
    """The first images of the test half, and their labels."""
    examples = data.examples(DIGITS, rows)
    return examples.tensor(), torch.tensor(examples.labels)


def first_of(whole: Dataset, rows: int) -> Dataset:
    """A data set that teaches its first images only; the test half is as it was."""
    images = whole.load(data.folder())
    assert images.train is not None
    half = images.train
    few = Split(half.images[:rows].copy(), half.labels[:rows].copy())
    return dataclasses.replace(whole, load=lambda _: dataclasses.replace(images, train=few))


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers."""
    return float((module(x).argmax(1) == y).double().mean())


def attacked(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: PerturbationSet | None = None,
    attack: Attack | None = None,
) -> Tensor:
    """What ten steps of PGD, or another attack, make of the images."""
    foe = attack or PGD(steps=10, rate=0.25)
    return craft(foe, module, x, y, ball or Linf(EPS), seed=0, example=torch.arange(len(x)))

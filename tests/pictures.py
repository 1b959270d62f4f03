"""Real pictures to learn from and to be asked about, and what an attack makes of them."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import torch
from torch import Tensor, nn

from bench import data
from bench.plugin import Attack, Dataset, Linf, PerturbationSet, Split
from bench.problem import craft
from plugins.attacks.pgd import PGD
from tests.lessons import DIGITS

EPS = Fraction(3, 20)
FORTY = PGD(steps=40, rate=0.1)


def held_out(rows: int = 500, dataset: Dataset = DIGITS) -> tuple[Tensor, Tensor]:
    """The first images of the test half, and their labels."""
    examples = data.examples(dataset, rows)
    return examples.tensor(), torch.tensor(examples.labels)


def first_of(whole: Dataset, rows: int) -> Dataset:
    """A data set that teaches its first images only; the test half is as it was."""
    images = whole.load(data.folder())
    assert images.train is not None
    half = images.train
    few = Split(half.images[:rows].copy(), half.labels[:rows].copy())
    return dataclasses.replace(
        whole, load=lambda _: dataclasses.replace(images, train=few), train_digest=""
    )


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers."""
    return float((module(x).argmax(1) == y).double().mean())


def attacked(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: PerturbationSet | None = None,
    attack: Attack = FORTY,
) -> Tensor:
    """What forty steps of PGD, or another attack, make of the images."""
    return craft(attack, module, x, y, ball or Linf(EPS), seed=0, example=torch.arange(len(x)))

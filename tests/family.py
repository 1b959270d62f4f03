"""What the tests of the family share: recipes by name, one lesson, one short training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.course import Progress
from bench.plugin import Dataset, Defense, Inner, Lesson, Linf, Recipe, Split
from bench.problem import craft
from bench.recipe import inner_attack
from bench.registry import Offer, Registry
from bench.train import train
from plugins.attacks.fast_gradient import FastGradient
from plugins.defenses._cnn import cnn
from tests.duel import digits, linear

SHAPE = (1, 8, 8)
EPS = Fraction(51, 255)
BALL = Linf(EPS)
FGSM = FastGradient("fgsm", ("Linf",), "")


@cache
def registry() -> Registry:
    return Registry.load(Path("no-submissions"))


def recipe_of(name: str) -> Recipe:
    found = registry().find("defense", name).value.recipe
    assert isinstance(found, Recipe)
    return found


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return cnn(SHAPE, 10)


def lesson() -> Lesson:
    """32 digits, half of them moved by FGSM of this untrained network, and its answers."""
    x, y = digits(32)
    model = network()
    adv = craft(FGSM, model, x, y, BALL, seed=0, example=torch.arange(32))
    return Lesson(model, x, y, adv)


def gradients(loss: Callable[[Lesson], Tensor], given: Lesson | None = None) -> list[Tensor]:
    """Of the batch's mean loss, for each parameter."""
    given = given or lesson()
    return list(torch.autograd.grad(loss(given).mean(), list(given.model.parameters())))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def near(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(p, q, rtol=1e-4, atol=1e-6) for p, q in zip(a, b, strict=True))


@cache
def reader() -> nn.Module:
    """The ridge regression of 1000 digits onto their classes: right on 19 of 20, fitted at once."""
    x, y = digits(1000)
    pixels = torch.cat([x.flatten(1), torch.ones(1000, 1)], 1).double()
    square = pixels.T @ pixels + torch.eye(65, dtype=torch.float64)
    weight = torch.linalg.solve(square, pixels.T @ (10 * torch.eye(10)[y]).double()).float()
    return linear(weight[:-1].T, weight[-1])


def played(inner: Inner) -> Tensor:
    x, y = digits(64)
    attack = inner_attack(registry(), inner).value
    return craft(attack, reader(), x, y, inner.ball, seed=0, example=torch.arange(64))


def steps_of(inner: Inner, **changes: Any) -> Inner:
    return dataclasses.replace(inner, options={**inner.options, **changes})


def small(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network with an embedding, quickly trained."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.ReLU(), nn.Linear(16, classes))


def short(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe for one epoch of that network."""
    return dataclasses.replace(recipe, model=small, epochs=1, **changes)


def taught(recipe: Recipe, folder: Path, tell: Callable[[Progress], None] | None = None) -> str:
    """The weights digest of this recipe on 128 digits."""
    known = registry()
    offer: Offer[Defense] = known.find("defense", "undefended")
    made = dataclasses.replace(offer.value, name="pupil", recipe=recipe)
    known.defenses["pupil"] = dataclasses.replace(offer, value=made)
    try:
        return train(known, "pupil", few_digits(), folder=folder, progress=tell)
    finally:
        del known.defenses["pupil"]


def few_digits() -> Dataset:
    whole: Dataset = registry().find("dataset", "digits").value
    images = whole.load(None)
    assert images.train is not None
    few = Split(images.train.images[:128].copy(), images.train.labels[:128].copy())
    return dataclasses.replace(
        whole, load=lambda folder: dataclasses.replace(images, train=few), train_digest=""
    )

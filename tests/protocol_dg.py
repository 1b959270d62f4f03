"""Protocol DG: the small bed on which the truths of the list of systems were measured.

1297 + 500 digits, split by scikit-learn with seed 0; an MLP 64-128-128-10; Adam 1e-3, batches of
64, 60 epochs; L-infinity .15; PGD in k steps of 2.5 eps / k. The loop that trains is the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import data
from bench.kit import cross_entropy
from bench.plugin import Dataset, Defense, Images, Inner, Lesson, Linf, Recipe, Split
from bench.problem import craft
from bench.recipe import inner_attack
from bench.registry import Offer, Registry
from bench.shelf import prepared

EPS = Fraction(15, 100)
TEST = 500


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two hidden layers of 128."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(shape[0] * shape[1] * shape[2], 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def on_clean(lesson: Lesson) -> Tensor:
    """-log p(y | x)."""
    return cross_entropy(lesson.model(lesson.x), lesson.y)


def pgd(steps: int, eps: Fraction = EPS, rate: float | None = None) -> Inner:
    """PGD in so many steps of 2.5 / steps radii, or of `rate` radii."""
    length = 2.5 / steps if rate is None else rate
    return Inner("pgd", Linf(eps), {"steps": steps, "rate": length})


def fgsm(eps: Fraction = EPS) -> Inner:
    """One signed step."""
    return Inner("fgsm", Linf(eps))


def recipe(loss: Callable[[Lesson], Tensor] = on_clean, **changes: Any) -> Recipe:
    """The protocol's training with this loss; `changes` are fields of the recipe."""
    return Recipe(**{"model": mlp, "loss": loss, "epochs": 60, **changes})


def read(folder: Path | None) -> Images:
    """The protocol's own split; the grey level k of 0..16 becomes the pixel round(255 k / 16)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.rint(255 * bunch.images / 16).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST, stratify=labels, random_state=0
    )
    return Images(
        train=Split(pixels[train], labels[train]),
        test=Split(pixels[test], labels[test]),
        index=test,
    )


DIGITS = Dataset(
    name="protocol-dg", classes=tuple("0123456789"), shape=(1, 8, 8), load=read, test_size=TEST
)


class Bed:
    """The test half, every attack of the house, and what was trained: each recipe once."""

    def __init__(self, folder: Path, dataset: Dataset = DIGITS) -> None:
        self.folder, self.dataset = folder, dataset
        self.registry = Registry.load(folder / "no-submissions")
        self.registry.defenses.clear()
        examples = data.examples(dataset, TEST)
        self.x, self.y = examples.tensor(), torch.tensor(examples.labels)

    def taught(self, name: str, made_by: Recipe) -> nn.Module:
        """The network of this recipe in eval mode; a recipe may name an earlier one as teacher."""
        made = Defense(
            name,
            build=lambda shelf: shelf.trained(made_by.model(shelf.shape, shelf.classes)),
            datasets=(self.dataset.name,),
            recipe=made_by,
        )
        self.registry.defenses[name] = Offer(made, "built-in", "tests.protocol_dg", name)
        return prepared(self.registry, name, self.dataset, self.folder).build()

    def right(self, model: nn.Module, images: Tensor) -> Tensor:
        """[500] bool."""
        with torch.no_grad():
            found: Tensor = model(images).argmax(1) == self.y
        return found

    def clean(self, model: nn.Module) -> float:
        """Accuracy."""
        return float(self.right(model, self.x).double().mean())

    def robust(self, model: nn.Module, by: Inner, through: nn.Module | None = None) -> float:
        """Accuracy on the last iterates of one attack; `through`: whose slope it climbs."""
        attack = inner_attack(self.registry, by).value
        keys = torch.arange(TEST)
        adv = craft(attack, through or model, self.x, self.y, by.ball, seed=0, example=keys)
        assert by.ball.contains(adv, self.x).all()
        held = self.right(model, self.x) & self.right(model, adv)
        return float(held.double().mean())


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """The bed of this session. Import it by name; every module finds the same weights."""
    return Bed(tmp_path_factory.getbasetemp() / "protocol-dg")

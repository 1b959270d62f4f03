"""CIFAR-10 recipes: standard, PGD, fast and TRADES training, with the settings of their papers.

docs/recipes.md lists the published figures and the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from bench.plugin import Defense, Fraction, InnerAttack, Linf, Loader, Recipe, hookimpl
from plugins.defenses._augmentations import random_flip, random_shift
from plugins.defenses._dropout_cnn import dropout_cnn
from plugins.defenses._losses import adversarial_loss, clean_loss
from plugins.defenses._residual_blocks import preact_resnet18, wide_resnet
from plugins.defenses.trades import trades_loss

BALL = Linf(Fraction(8, 255))
PGD_7 = InnerAttack("pgd", BALL, {"steps": 7, "rate": 2 / 8})
FAST_STEP = InnerAttack("pgd", BALL, {"steps": 1, "rate": 10 / 8})
PGD_5 = InnerAttack("pgd", BALL, {"steps": 5, "rate": 2 / 8})
TRADES_10 = InnerAttack("pgd-kl", BALL, {"steps": 10, "rate": 0.007 / 0.031})
BETA = 6.0
SHORT_SCHEDULE: dict[str, Any] = {
    "epochs": 15,
    "rate": 0.2,
    "weight_decay": 5e-4,
    "schedule": "cyclic",
}
"""A few epochs, with a learning rate that rises to its peak and falls to zero (arXiv:2001.03994).
"""


def augment(images: Tensor) -> Tensor:
    """Images [n, C, H, W], mirrored at random and shifted by up to four pixels."""
    return random_shift(random_flip(images), 4)


sgd = partial(Recipe, optimiser="sgd", batch=128, augment=augment)
base = partial(dropout_cnn, width=64)
wide = partial(wide_resnet, depth=34, widen=10)


def trained(loader: Loader, make: Callable[[tuple[int, int, int], int], nn.Module]) -> nn.Module:
    """The recipe's network with the defense's own weights."""
    return loader.trained(make(loader.shape, loader.classes))


def defense(name: str, cite: str, summary: str, recipe: Recipe) -> Defense:
    """A defense on CIFAR-10 with weights of its own and the surrogate `undefended-images`."""
    return Defense(
        name=name,
        datasets=("cifar10",),
        cite=cite,
        summary=summary,
        recipe=recipe,
        build=partial(trained, make=recipe.model),
        surrogate="undefended-images",
        quick=False,
    )


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the five; `bench train NAME --device cuda --mixed` trains their weights."""
    yield defense(
        "cifar-base",
        "arXiv:1207.0580",
        "Six convolutions and two dense layers with dropout, trained on clean images.",
        sgd(base, clean_loss, epochs=60, rate=0.05, weight_decay=5e-4, schedule="cosine"),
    )
    yield defense(
        "cifar-standard",
        "arXiv:1603.05027",
        "PreActResNet-18 trained on clean images.",
        sgd(preact_resnet18, clean_loss, **SHORT_SCHEDULE),
    )
    yield defense(
        "cifar-pgd",
        "arXiv:1706.06083",
        "PreActResNet-18 trained on PGD images of seven steps, 8/255.",
        sgd(preact_resnet18, adversarial_loss, PGD_7, **SHORT_SCHEDULE),
    )
    yield defense(
        "cifar-fast",
        "arXiv:2001.03994",
        "PreActResNet-18 trained on one step of 10/255 from a random start, 8/255.",
        sgd(preact_resnet18, adversarial_loss, FAST_STEP, monitor=PGD_5, **SHORT_SCHEDULE),
    )
    yield defense(
        "cifar-trades",
        "arXiv:1901.08573",
        f"Wide ResNet 34-10 trained by TRADES, 8/255, beta = {BETA:g}.",
        sgd(
            wide,
            partial(trades_loss, beta=BETA),
            TRADES_10,
            epochs=80,
            rate=0.1,
            weight_decay=2e-4,
            schedule="steps",
            options={"beta": BETA},
        ),
    )

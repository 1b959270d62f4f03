"""Small residual networks for CIFAR-10: standard, Fast, PGD and TRADES training at 2/255.

The architecture is that of `resnet2b-cifar10`, so that the rows of `cifar10-linf-2` differ in their
training alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from bench.plugin import Defense, Fraction, InnerAttack, Linf, Loader, Recipe, hookimpl
from plugins.defenses._augmentations import random_flip
from plugins.defenses._losses import adversarial_loss, clean_loss
from plugins.defenses.resnet2b import ResNet2b
from plugins.defenses.trades import trades_loss
from plugins.published._weights import load_published

BALL = Linf(Fraction(2, 255))
FAST_STEP = InnerAttack("pgd", BALL, {"steps": 1, "rate": 1.25})
PGD_3 = InnerAttack("pgd", BALL, {"steps": 3, "rate": 2.5 / 3})
TRADES_3 = InnerAttack("pgd-kl", BALL, {"steps": 3, "rate": 2.5 / 3})
BETA = 6.0


def small_resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two residual blocks without batch normalisation: [n, 3, 32, 32] to logits [n, 10].

    The arguments are those that a recipe gives; the shape of CIFAR-10 is the only one.
    """
    return ResNet2b()


def published(loader: Loader, defense: str) -> nn.Module:
    """The network with the published weights."""
    return load_published(loader, small_resnet(loader.shape, loader.classes), defense)


recipe = partial(Recipe, small_resnet, batch=128, rate=2e-3, schedule="cyclic", augment=random_flip)


def defense(training: str, cite: str, summary: str, **numbers: Any) -> Defense:
    """A defense with published weights and the recipe that made them."""
    name = f"resnet2b-{training}"
    return Defense(
        name=name,
        datasets=("cifar10",),
        cite=cite,
        summary=summary,
        recipe=recipe(**numbers),
        build=partial(published, defense=name),
        surrogate="resnet2b-standard",
        quick=False,
    )


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register four trainings of one network."""
    yield defense(
        "standard",
        "arXiv:1603.05027",
        "Residual network of 0.11 M weights, trained on clean images; published weights.",
        loss=clean_loss,
        epochs=6,
    )
    yield defense(
        "fast",
        "arXiv:2001.03994",
        "The same network, trained on one step of 2.5/255 from a random start.",
        loss=adversarial_loss,
        inner=FAST_STEP,
        monitor=PGD_3,
        epochs=4,
    )
    yield defense(
        "pgd",
        "arXiv:1706.06083",
        "The same network, trained on PGD images of three steps, 2/255.",
        loss=adversarial_loss,
        inner=PGD_3,
        epochs=3,
    )
    yield defense(
        "trades",
        "arXiv:1901.08573",
        f"The same network, trained by TRADES with three steps, 2/255, beta = {BETA:g}.",
        loss=partial(trades_loss, beta=BETA),
        inner=TRADES_3,
        options={"beta": BETA},
        epochs=3,
    )

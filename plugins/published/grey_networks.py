"""Networks for MNIST and Fashion-MNIST, trained on clean, FGSM and PGD images at L-infinity 0.1.

The architecture is that of `convex-mnist` and `convex-fashion` (arXiv:1711.00851), so that the
rows of a leaderboard differ in their training alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from bench.plugin import Defense, Fraction, InnerAttack, Linf, Loader, Recipe, hookimpl
from plugins.defenses._losses import adversarial_loss, clean_loss
from plugins.defenses.convex_polytope import network
from plugins.published._weights import load_published

BALL = Linf(Fraction(1, 10))
FAST_STEP = InnerAttack("pgd", BALL, {"steps": 1, "rate": 1.25})
PGD_3 = InnerAttack("pgd", BALL, {"steps": 3, "rate": 2.5 / 3})
DATASETS = {"mnist": "mnist", "fashion": "fashion-mnist"}
"""Beginning of a defense's name -> its data set."""


def grey_network(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two strided convolutions and one hidden layer: [n, 1, 28, 28] in [0, 1] to logits [n, 10].

    The arguments are those that a recipe gives; all data sets of this file have the same.
    """
    return network()


def published(loader: Loader, defense: str) -> nn.Module:
    """The network with the published weights."""
    return load_published(loader, grey_network(loader.shape, loader.classes), defense)


recipe = partial(Recipe, grey_network, batch=128, rate=2e-3, schedule="cyclic")


def defense(kind: str, training: str, cite: str, summary: str, **numbers: Any) -> Defense:
    """A defense on one data set with published weights and the recipe that made them."""
    name = f"{kind}-{training}"
    return Defense(
        name=name,
        datasets=(DATASETS[kind],),
        cite=cite,
        summary=summary,
        recipe=recipe(**numbers),
        build=partial(published, defense=name),
        surrogate=f"{kind}-standard",
        quick=False,
    )


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register three networks for each data set."""
    for kind, dataset in DATASETS.items():
        title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}[dataset]
        yield defense(
            kind, "standard", "",
            f"Network of 0.17 M weights for {title}, trained on clean images; published weights.",
            loss=clean_loss, epochs=3,
        )  # fmt: skip
        yield defense(
            kind, "fast", "arXiv:2001.03994",
            f"The same network for {title}, trained on one step of 0.125 from a random start.",
            loss=adversarial_loss, inner=FAST_STEP, monitor=PGD_3, epochs=3,
        )  # fmt: skip
        yield defense(
            kind, "pgd", "arXiv:1706.06083",
            f"The same network for {title}, trained on PGD images of three steps, 0.1.",
            loss=adversarial_loss, inner=PGD_3, epochs=2,
        )  # fmt: skip

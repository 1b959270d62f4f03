"""Residual networks trained on clean images: undefended models of several architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from bench.plugin import Defense, Loader, Recipe, hookimpl
from plugins.defenses import _residual_blocks as residual
from plugins.defenses._augmentations import random_flip, random_shift
from plugins.defenses._losses import clean_loss

MakeNetwork = Callable[[tuple[int, int, int], int], nn.Module]


def augment(images: Tensor) -> Tensor:
    """Images [n, C, H, W] shifted by up to four pixels; colour ones also flipped at random."""
    return random_shift(random_flip(images) if images.shape[1] == 3 else images, 4)


def trained(loader: Loader, make: MakeNetwork) -> nn.Module:
    """The network with its own weights."""
    return loader.trained(make(loader.shape, loader.classes))


def residual_defense(name: str, make: MakeNetwork, cite: str, summary: str) -> Defense:
    """An undefended network with the common recipe."""
    return Defense(
        name=name,
        datasets=("cifar100", "cifar10", "fashion-mnist", "mnist"),
        cite=cite,
        summary=summary,
        recipe=Recipe(
            make, clean_loss, epochs=30, batch=128, rate=0.1, weight_decay=5e-4, optimiser="sgd",
            schedule="cosine", augment=augment,
        ),
        build=partial(trained, make=make),
        surrogate="undefended-images",
        quick=False,
    )  # fmt: skip


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register one small network of each architecture."""
    layers = "Trained on clean images: 20 layers, 0.27 M weights"
    yield residual_defense("resnet-20", residual.resnet, "arXiv:1512.03385", f"{layers}.")
    yield residual_defense(
        "preresnet-20", residual.preresnet, "arXiv:1603.05027", f"{layers}, pre-activation blocks."
    )
    yield residual_defense(
        "se-resnet-20", residual.se_resnet, "arXiv:1709.01507", f"{layers}, squeeze and excitation."
    )
    yield residual_defense(
        "resnext-29",
        partial(residual.resnext, cardinality=32, width=4),
        "arXiv:1611.05431",
        "Trained on clean images: 29 layers, 32 groups of 4 channels, 4.8 M weights.",
    )
    yield residual_defense(
        "wide-resnet-16-4",
        partial(residual.wide_resnet, depth=16, widen=4),
        "arXiv:1605.07146",
        "Trained on clean images: 16 layers, four times as wide, 2.7 M weights.",
    )

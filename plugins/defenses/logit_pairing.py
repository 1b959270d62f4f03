"""Logit pairing: pull the answers to two images together. Kannan, Kurakin and Goodfellow 2018."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.plugin import (
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
)
from plugins.defenses._cnn import cnn, trained

INNER = InnerAttack("pgd", Linf(Fraction(51, 255)), {"steps": 7, "rate": 2.5 / 7})
STRENGTH = 0.5
SIGMA = 0.25


def squared_distance(one: Tensor, other: Tensor, form: str) -> Tensor:
    """||one - other||_2^2 [n] of logits [n, K], or of their `probabilities`."""
    if form == "probabilities":
        one, other = one.softmax(1), other.softmax(1)
    return (one - other).square().sum(1)


def adversarial_pairing(batch: TrainingBatch, strength: float, form: str) -> Tensor:
    """ALP: J(x') + strength ||f(x) - f(x')||^2."""
    moved = batch.model(batch.adv)
    apart = squared_distance(batch.model(batch.x), moved, form)
    return cross_entropy(moved, batch.y) + strength * apart


def clean_pairing(batch: TrainingBatch, strength: float, form: str) -> Tensor:
    """CLP as later tables have it: J(x) + strength ||f(x) - f(x')||^2."""
    found = batch.model(batch.x)
    apart = squared_distance(found, batch.model(batch.adv), form)
    return cross_entropy(found, batch.y) + strength * apart


def random_pairing(batch: TrainingBatch, strength: float) -> Tensor:
    """CLP as published: J(x) + strength ||f(x_i) - f(x_j)||^2, each image paired with another.

    A batch comes in random order: its first is paired with its last, its second with the one
    before, and so on.
    """
    found = batch.model(batch.x)
    apart = squared_distance(found, found.flip(0), "logits")
    return cross_entropy(found, batch.y) + strength * apart


def add_noise(x: Tensor, sigma: float) -> Tensor:
    """x + N(0, sigma^2), in the box."""
    return (x + sigma * torch.randn_like(x)).clamp(0, 1)


def pairing_defense(name: str, summary: str, recipe: Recipe) -> Defense:
    """A defense of this file."""
    return Defense(
        name=name,
        cite="arXiv:1803.06373",
        summary=summary,
        recipe=recipe,
        build=trained,
        quick=False,
    )


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer pairs of an image with its adversarial one, in three forms, and pairs of strangers."""
    common = partial(Recipe, cnn, epochs=30, rate=2e-3, schedule="cosine")
    for name, loss, strength, form in (
        ("alp", adversarial_pairing, 0.5, "logits"),
        ("alp-probabilities", adversarial_pairing, 0.5, "probabilities"),
        ("clp", clean_pairing, 5.0, "probabilities"),
    ):
        learned = "adversarial" if loss is adversarial_pairing else "clean"
        yield pairing_defense(
            name,
            f"Right on {learned} images, {form} of clean and adversarial ones alike.",
            common(
                partial(loss, strength=strength, form=form),
                INNER,
                options={"strength": strength, "form": form},
            ),
        )
    yield pairing_defense(
        "clp-strangers",
        "Right on noisy images, logits of different ones alike: small logits, not safe ones.",
        common(
            partial(random_pairing, strength=STRENGTH),
            augment=partial(add_noise, sigma=SIGMA),
            options={"strength": STRENGTH, "sigma": SIGMA},
        ),
    )

"""Logit pairing: adversarial training that pulls the logits of two images together.

Kannan, Kurakin and Goodfellow 2018, arXiv:1803.06373.
"""

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
    """The squared distance [n] of logits [n, K], or of their `probabilities`."""
    if form == "probabilities":
        one, other = one.softmax(1), other.softmax(1)
    return (one - other).square().sum(1)


def adversarial_pairing(batch: TrainingBatch, strength: float, form: str) -> Tensor:
    """Adversarial logit pairing (ALP): J(x') + strength ||f(x) - f(x')||^2 [n]."""
    adv_logits = batch.model(batch.adv)
    distance = squared_distance(batch.model(batch.x), adv_logits, form)
    return cross_entropy(adv_logits, batch.y) + strength * distance


def clean_pairing(batch: TrainingBatch, strength: float, form: str) -> Tensor:
    """Clean logit pairing (CLP) as in later comparisons: J(x) + strength ||f(x) - f(x')||^2 [n]."""
    logits = batch.model(batch.x)
    distance = squared_distance(logits, batch.model(batch.adv), form)
    return cross_entropy(logits, batch.y) + strength * distance


def random_pairing(batch: TrainingBatch, strength: float) -> Tensor:
    """Clean logit pairing as published: J(x) + strength ||f(x_i) - f(x_j)||^2 [n], i and j random.

    A batch comes in random order: its first image is paired with its last, its second with the one
    before, and so on.
    """
    logits = batch.model(batch.x)
    distance = squared_distance(logits, logits.flip(0), "logits")
    return cross_entropy(logits, batch.y) + strength * distance


def add_noise(x: Tensor, sigma: float) -> Tensor:
    """Images x [n, C, H, W] + N(0, sigma^2), clipped to the box."""
    return (x + sigma * torch.randn_like(x)).clamp(0, 1)


def pairing_defense(name: str, summary: str, recipe: Recipe) -> Defense:
    """A defense with this recipe and the paper's source."""
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
    """Register pairs of clean and adversarial images in three forms, and random pairs."""
    common = partial(Recipe, cnn, epochs=30, rate=2e-3, schedule="cosine")
    for name, loss, strength, form in (
        ("alp", adversarial_pairing, 0.5, "logits"),
        ("alp-probabilities", adversarial_pairing, 0.5, "probabilities"),
        ("clp", clean_pairing, 5.0, "probabilities"),
    ):
        trained_on = "adversarial" if loss is adversarial_pairing else "clean"
        yield pairing_defense(
            name,
            f"Trained on {trained_on} images, with equal {form} on clean and adversarial ones.",
            common(
                partial(loss, strength=strength, form=form),
                INNER,
                options={"strength": strength, "form": form},
            ),
        )
    yield pairing_defense(
        "clp-strangers",
        "Trained on noisy images, with equal logits on random pairs; only makes logits small.",
        common(
            partial(random_pairing, strength=STRENGTH),
            augment=partial(add_noise, sigma=SIGMA),
            options={"strength": STRENGTH, "sigma": SIGMA},
        ),
    )

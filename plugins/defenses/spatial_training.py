"""Adversarial training with rotations and translations, and random ones as the control.

Engstrom et al. 2019, arXiv:1712.02779.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.plugin import Defense, InnerAttack, Recipe, RotationTranslation, hookimpl
from plugins.defenses._cnn import cnn, trained
from plugins.defenses._losses import clean_loss
from plugins.defenses.fgsm_training import ALPHA, mixture_loss

MOVES = RotationTranslation(degrees=30.0, pixels=1.0)
"""The set of the threat model `digits-rotation`."""


def random_move(images: Tensor) -> Tensor:
    """Images [n, C, H, W], each under a uniform point of the set, from torch's generator."""
    point = 2 * torch.rand(len(images), *MOVES.shape(images), device=images.device) - 1
    return MOVES.apply(point, images)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained on the worst of 45 moves, and that trained on random ones."""
    inner = InnerAttack("rotation-grid", MOVES, {"angles": 5, "rights": 3, "downs": 3})
    yield Defense(
        name="spatial-training",
        cite="arXiv:1712.02779",
        summary="Trained on each image and on the worst of 45 rotations and translations of it.",
        # On the worst image alone the network predicts one class for all, from the first epoch on.
        recipe=Recipe(
            cnn, partial(mixture_loss, alpha=ALPHA), inner, epochs=30, schedule="cosine",
            options={"alpha": ALPHA},
        ),
        build=trained,
        quick=False,
    )  # fmt: skip
    yield Defense(
        name="spatial-augmented",
        cite="arXiv:1712.02779",
        summary="Trained on random rotations and translations of each image; no attack.",
        recipe=Recipe(
            cnn, clean_loss, epochs=30, rate=2e-3, schedule="cosine", augment=random_move,
            options={"degrees": MOVES.degrees, "pixels": MOVES.pixels},
        ),
        build=trained,
        quick=False,
    )  # fmt: skip

"""Weight decay: a penalty on the squared weights, a regulariser and no defense."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.plugin import Defense, Recipe, TrainingBatch, cross_entropy, hookimpl
from plugins.defenses._cnn import cnn, trained

STRENGTH = 5e-3


def weight_decay_loss(batch: TrainingBatch, strength: float) -> Tensor:
    """Mean of -log p(y | x) over images x [n, C, H, W], plus strength / 2 ||w||_2^2.

    w holds all weights and biases.
    """
    squares = torch.stack([weight.square().sum() for weight in batch.model.parameters()])
    loss = cross_entropy(batch.model(batch.x), batch.y).mean()
    return loss + strength / 2 * squares.sum()


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the network trained with the penalty."""
    yield Defense(
        name="weight-decay",
        summary=f"Trained with a penalty of {STRENGTH:g} / 2 on the squared weights.",
        recipe=Recipe(
            cnn,
            partial(weight_decay_loss, strength=STRENGTH),
            epochs=20,
            rate=2e-3,
            schedule="cosine",
            options={"strength": STRENGTH},
        ),
        build=trained,
    )

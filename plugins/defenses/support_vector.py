"""Linear support vector machine for several classes.

Crammer and Singer 2001, https://www.jmlr.org/papers/v2/crammer01a.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.plugin import Defense, Recipe, TrainingBatch, hookimpl, margin
from plugins.defenses.softmax_regression import regression, trained

STRENGTH = 1e-3


def hinge_loss(batch: TrainingBatch, strength: float) -> Tensor:
    """The multi-class hinge loss of logits z [n, K] with a penalty on the weights.

    mean of max(0, 1 + max_{j != y} z_j - z_y), plus strength / 2 ||W||_2^2; the offsets are free.
    """
    losses = (1 + margin(batch.model(batch.x), batch.y)).clamp_min(0)
    matrices = [weight for weight in batch.model.parameters() if weight.ndim > 1]
    return losses.mean() + strength / 2 * torch.stack([w.square().sum() for w in matrices]).sum()


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the machine; it is linear, so its certificate is exact."""
    yield Defense(
        name="linear-svm",
        cite="https://www.jmlr.org/papers/v2/crammer01a.html",
        summary="A linear support vector machine; its exact robust accuracy is certified.",
        recipe=Recipe(
            regression,
            partial(hinge_loss, strength=STRENGTH),
            epochs=120,
            batch=128,
            rate=5e-2,
            schedule="cosine",
            options={"strength": STRENGTH},
        ),
        build=trained,
        quick=False,
    )

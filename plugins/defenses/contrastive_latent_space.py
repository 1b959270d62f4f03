"""Contrastive latent space: predicts the class of the nearest support in a learned embedding.

The loss of the embedding is that of Hadsell, Chopra and LeCun 2006 (doi:10.1109/CVPR.2006.100). It
adds no robustness: attacks move the embedding as they move logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.plugin import (
    Defense,
    Loader,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
    require_type,
)
from plugins.defenses._cnn import cnn

LATENT = 2
SUPPORTS = 5  # a class
MARGIN = 2.0


class NearestSupport(nn.Module):
    """An encoder, and for each class a few support points in its latent space."""

    support: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.encoder = cnn(shape, LATENT)
        self.head = nn.Linear(LATENT, classes)
        self.register_buffer("support", torch.zeros(classes, SUPPORTS, LATENT))

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]: minus the distance to each class."""
        return -support_distances(self.encoder(images), self.support)


def support_distances(z: Tensor, support: Tensor) -> Tensor:
    """The distance [n, K] of z [n, d] to the nearest support [K, m, d] of each class."""
    square = (z[:, None, None] - support).square().sum(3).amin(2)
    return (square + 1e-12).sqrt()


def contrastive_loss(z: Tensor, y: Tensor, margin: float) -> Tensor:
    """Mean [] over all pairs of 1[y = y'] d^2 + 1[y != y'] max(0, margin - d)^2, d = ||z - z'||.

    `z` is [n, d] and `y` [n].
    """
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    d = ((z[i] - z[j]).square().sum(1) + 1e-12).sqrt()
    return torch.where(y[i] == y[j], d.square(), (margin - d).clamp(min=0).square()).mean()


def training_loss(batch: TrainingBatch, margin: float) -> Tensor:
    """The cross-entropy -log p(y | x) [n] of the linear head, plus the contrastive loss."""
    model = require_type(batch.model, NearestSupport, "the model")
    z = model.encoder(batch.x)
    return cross_entropy(model.head(z), batch.y) + contrastive_loss(z, batch.y, margin)


def store_supports(batch: TrainingBatch) -> None:
    """Store the embeddings of the first few images of each class as supports."""
    model = require_type(batch.model, NearestSupport, "the model")
    with torch.no_grad():
        z = model.encoder(batch.x)
    for label, place in enumerate(model.support):
        place.copy_(z[batch.y == label][:SUPPORTS])


def build(loader: Loader) -> nn.Module:
    """The encoder and its supports."""
    return loader.trained(NearestSupport(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the classifier in a two-dimensional latent space."""
    yield Defense(
        name="contrastive",
        cite="doi:10.1109/CVPR.2006.100",
        summary=f"The nearest of {SUPPORTS} supports a class in a contrastive latent space.",
        recipe=Recipe(
            NearestSupport,
            partial(training_loss, margin=MARGIN),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            fit=store_supports,
            options={"margin": MARGIN, "supports": SUPPORTS, "latent": LATENT},
        ),
        build=build,
        quick=False,
    )

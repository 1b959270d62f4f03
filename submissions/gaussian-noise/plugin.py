"""Gaussian noise layers: a network that never answers twice the same."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, TrainingBatch, cross_entropy, hookimpl

SIGMA = 0.25
"""Standard deviation of the noise, in units of the layer's output."""


class Noise(nn.Module):
    """h + N(0, sigma^2), in training and afterwards."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, hidden: Tensor) -> Tensor:
        """The same shape; fresh draws on every call."""
        return hidden + self.sigma * torch.randn_like(hidden)


def noisy(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two convolutions and two dense layers; noise after the first and before the last layer."""
    channels, height, width = shape
    features = 32 * ((height + 1) // 2) * ((width + 1) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        Noise(SIGMA),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 64),
        nn.ReLU(),
        Noise(SIGMA),
        nn.Linear(64, classes),
    )


def standard(lesson: TrainingBatch) -> Tensor:
    """-log p(y | x) of one noisy answer, on clean images."""
    return cross_entropy(lesson.model(lesson.x), lesson.y)


def build(loader: Loader) -> nn.Module:
    """The network with the weights that lie beside this file."""
    return loader.weights(noisy(loader.shape, loader.classes), "weights.safetensors")


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer it; the recipe tells how the weights came about."""
    yield Defense(
        name="gaussian-noise",
        cite="arXiv:1712.00673",
        summary=f"Noise of deviation {SIGMA} inside the network, in training and in play.",
        build=build,
        recipe=Recipe(noisy, standard, epochs=30, rate=2e-3, schedule="cosine"),
        randomness=Randomness(draws=4),
    )

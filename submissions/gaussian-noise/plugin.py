"""Gaussian noise layers: noise on hidden values, in training and at test time.

Liu et al. 2018, arXiv:1712.00673.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, TrainingBatch, cross_entropy, hookimpl

SIGMA = 0.25
"""Standard deviation of the noise, in units of the layer's output."""


class GaussianNoise(nn.Module):
    """A layer h + N(0, sigma^2), with new noise on every call."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, hidden: Tensor) -> Tensor:
        """Values [n, ...] with noise added, of the same shape."""
        return hidden + self.sigma * torch.randn_like(hidden)


def noisy_cnn(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two convolutions and two dense layers, noise after the first and before the last layer."""
    channels, height, width = shape
    features = 32 * ((height + 1) // 2) * ((width + 1) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        GaussianNoise(SIGMA),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 64),
        nn.ReLU(),
        GaussianNoise(SIGMA),
        nn.Linear(64, classes),
    )


def noisy_loss(batch: TrainingBatch) -> Tensor:
    """The cross-entropy -log p(y | x) [n] of one noisy forward, on clean images."""
    return cross_entropy(batch.model(batch.x), batch.y)


def build(loader: Loader) -> nn.Module:
    """The network with the weights from the file beside this one."""
    return loader.weights(noisy_cnn(loader.shape, loader.classes), "weights.safetensors")


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the defense; the recipe documents how the weights were trained."""
    yield Defense(
        name="gaussian-noise",
        cite="arXiv:1712.00673",
        summary=f"Gaussian noise of deviation {SIGMA} inside the network, always active.",
        build=build,
        recipe=Recipe(noisy_cnn, noisy_loss, epochs=30, rate=2e-3, schedule="cosine"),
        randomness=Randomness(draws=4),
    )

"""Randomized smoothing: the majority vote of a classifier on many noisy copies of the image.

Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918. PixelDP (arXiv:1802.03471) with its noise on the
image is the same classifier; the two differ in their certificates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, TrainingBatch, cross_entropy, hookimpl
from plugins.defenses._cnn import cnn, trained

SIGMA = 0.5
VOTES = 64
BPDA_DRAWS = 8  # over which the BPDA approximation averages


class Smoothed(nn.Module):
    """The vote of a classifier on `votes` copies of the image with noise N(0, sigma^2)."""

    def __init__(self, classifier: nn.Module, sigma: float, votes: int) -> None:
        super().__init__()
        self.classifier, self.sigma, self.votes = classifier, sigma, votes

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]; new noise on each call.

        A logit is the log of the number of votes plus one half, which keeps it finite.
        """
        votes = torch.stack([self.vote(images) for _ in range(self.votes)])
        return (votes.sum(0) + 0.5).log()

    def vote(self, images: Tensor) -> Tensor:
        """One-hot predictions [n, K] for images [n, C, H, W] under one draw of the noise."""
        logits: Tensor = self.classifier(add_noise(images, self.sigma))
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


class MeanNoisyProbability(nn.Module):
    """The log of the mean probability over a few noisy copies: a vote with a gradient."""

    def __init__(self, classifier: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.classifier, self.sigma, self.draws = classifier, sigma, draws

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]; new noise on each call."""
        logits = [self.classifier(add_noise(images, self.sigma)) for _ in range(self.draws)]
        return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0)


def add_noise(images: Tensor, sigma: float) -> Tensor:
    """Images [n, C, H, W] with Gaussian noise; the certificate requires it unclipped."""
    return images + sigma * torch.randn_like(images)


def noisy_loss(batch: TrainingBatch) -> Tensor:
    """The cross-entropy -log p(y | x + noise) [n]."""
    return cross_entropy(batch.model(add_noise(batch.x, SIGMA)), batch.y)


def build(loader: Loader) -> nn.Module:
    """The vote of the trained network."""
    return Smoothed(trained(loader), SIGMA, VOTES)


def bpda(loader: Loader) -> nn.Module:
    """The BPDA approximation: mean probabilities under the same noise, for votes are flat."""
    return MeanNoisyProbability(trained(loader), SIGMA, BPDA_DRAWS)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the vote of a network that was trained under the same noise."""
    yield Defense(
        name="smoothed",
        cite="arXiv:1902.02918",
        summary=f"Majority vote over {VOTES} draws of Gaussian noise of {SIGMA}; certified in L2.",
        recipe=Recipe(
            cnn, noisy_loss, epochs=30, rate=2e-3, schedule="cosine", options={"sigma": SIGMA}
        ),
        build=build,
        bpda=bpda,
        # Each call draws new votes, and the BPDA approximation averages its own draws.
        randomness=Randomness(draws=1),
        quick=False,
        forwards=VOTES,
    )

"""Randomised smoothing: many noisy looks at the image, and the class that most of them name.

Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918. PixelDP (arXiv:1802.03471) with its noise on
the image is the same classifier; the two differ in what they prove of it.
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
BPDA_DRAWS = 8  # over which an attacker averages the slope


class Smoothed(nn.Module):
    """The vote of a classifier on `votes` copies of the image with N(0, sigma^2) on every pixel."""

    def __init__(self, classifier: nn.Module, sigma: float, votes: int) -> None:
        super().__init__()
        self.classifier, self.sigma, self.votes = classifier, sigma, votes

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]; new noise on each call.

        A logit is the log of the votes; half a vote more for each class keeps it finite.
        """
        votes = torch.stack([self.vote(images) for _ in range(self.votes)])
        return (votes.sum(0) + 0.5).log()

    def vote(self, images: Tensor) -> Tensor:
        """[n, K] one-hot: what the classifier calls each image under one draw of the noise."""
        logits: Tensor = self.classifier(add_noise(images, self.sigma))
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


class MeanNoisyProbability(nn.Module):
    """The log of the mean probability over a few looks: what votes are, with a slope."""

    def __init__(self, classifier: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.classifier, self.sigma, self.looks = classifier, sigma, draws

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]; new noise on each call."""
        looks = [self.classifier(add_noise(images, self.sigma)) for _ in range(self.looks)]
        return torch.stack([look.log_softmax(1) for look in looks]).logsumexp(0)


def add_noise(images: Tensor, sigma: float) -> Tensor:
    """Gaussian noise on every pixel; nothing is clipped, or the proof would not hold."""
    return images + sigma * torch.randn_like(images)


def noisy_loss(batch: TrainingBatch) -> Tensor:
    """-log p(y | x + noise)."""
    return cross_entropy(batch.model(add_noise(batch.x, SIGMA)), batch.y)


def build(loader: Loader) -> nn.Module:
    """The voters."""
    return Smoothed(trained(loader), SIGMA, VOTES)


def bpda(loader: Loader) -> nn.Module:
    """Votes have no slope; probabilities under the same noise have."""
    return MeanNoisyProbability(trained(loader), SIGMA, BPDA_DRAWS)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the vote of a network trained under the noise that it votes under."""
    yield Defense(
        name="smoothed",
        cite="arXiv:1902.02918",
        summary=f"The majority of {VOTES} looks under Gaussian noise of {SIGMA}; certified in L2.",
        recipe=Recipe(
            cnn, noisy_loss, epochs=30, rate=2e-3, schedule="cosine", options={"sigma": SIGMA}
        ),
        build=build,
        bpda=bpda,
        # Each call draws all its votes anew, and the stand-in averages its own looks.
        randomness=Randomness(draws=1),
        quick=False,
        forwards=VOTES,
    )

"""SHIELD: a random JPEG quality for each block, and a vote of networks trained on JPEG images.

Das et al. 2018, arXiv:1802.06816: stochastic local quantisation, vaccination, majority vote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import (
    Defense,
    Loader,
    Randomness,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
    straight_through,
)
from plugins.defenses._cnn import cnn
from plugins.defenses._preprocessing import PreprocessedModel, Preprocessing
from plugins.defenses.jpeg import BLOCK, jpeg_compress

QUALITIES = (20, 40, 60, 80)


def random_block_quality(images: Tensor, qualities: tuple[int, ...] = QUALITIES) -> Tensor:
    """Images [n, C, H, W] with a random quality for every 8 x 8 block, from torch's generator."""
    n, _, height, width = images.shape
    blocks = (n, 1, -(-height // BLOCK), -(-width // BLOCK))
    choice = torch.randint(len(qualities), blocks, device=images.device)
    choice = choice.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., :height, :width]
    levels = torch.stack([jpeg_compress(images, quality) for quality in qualities])
    return levels.gather(0, choice.expand(images.shape)[None])[0]


class MajorityVote(nn.Module):
    """The majority of several networks; a logit is the log of the votes plus one half."""

    def __init__(self, voters: nn.ModuleList) -> None:
        super().__init__()
        self.voters = voters

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        logits = torch.stack([voter(images) for voter in self.voters])
        return (F.one_hot(logits.argmax(2), logits.shape[2]).sum(0) + 0.5).log()


class MeanProbability(nn.Module):
    """The log of the networks' mean probability: a vote with a gradient."""

    def __init__(self, voters: nn.ModuleList) -> None:
        super().__init__()
        self.voters = voters

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        return torch.stack([voter(images).log_softmax(1) for voter in self.voters]).logsumexp(0)


def vaccination_loss(batch: TrainingBatch) -> Tensor:
    """The sum over qualities q of -log p_q(y | JPEG_q(x)) [n], one quality for each network."""
    voters = cast(MajorityVote, batch.model).voters
    losses = [
        cross_entropy(voter(jpeg_compress(batch.x, quality)), batch.y)
        for voter, quality in zip(voters, QUALITIES, strict=True)
    ]
    return torch.stack(losses).sum(0)


def voting_networks(shape: tuple[int, int, int], classes: int) -> MajorityVote:
    """One network for each quality."""
    return MajorityVote(nn.ModuleList(cnn(shape, classes) for _ in QUALITIES))


def build(loader: Loader) -> nn.Module:
    """The vote behind the random block quality."""
    return PreprocessedModel(
        loader.trained(voting_networks(loader.shape, loader.classes)), random_block_quality
    )


def bpda(loader: Loader) -> nn.Module:
    """The BPDA approximation: the identity for the codec, and mean probabilities for the vote."""
    vote = cast(MajorityVote, loader.trained(voting_networks(loader.shape, loader.classes)))
    change: Preprocessing = straight_through(random_block_quality)
    return PreprocessedModel(MeanProbability(vote.voters), change)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the vote of four networks."""
    yield Defense(
        name="shield",
        cite="arXiv:1802.06816",
        summary="A random JPEG quality for each block, a vote of networks trained on JPEG images.",
        recipe=Recipe(voting_networks, vaccination_loss, epochs=15, rate=2e-3, schedule="cosine"),
        build=build,
        bpda=bpda,
        randomness=Randomness(draws=4),
        forwards=len(QUALITIES),
        quick=False,
    )

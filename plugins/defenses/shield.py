"""SHIELD: another JPEG quality for every block of the image, and networks that grew up with it.

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
    """Every 8 x 8 block at a quality of its own, each as likely, from torch's generator."""
    n, _, height, width = images.shape
    blocks = (n, 1, -(-height // BLOCK), -(-width // BLOCK))
    choice = torch.randint(len(qualities), blocks, device=images.device)
    choice = choice.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., :height, :width]
    levels = torch.stack([jpeg_compress(images, quality) for quality in qualities])
    return levels.gather(0, choice.expand(images.shape)[None])[0]


class MajorityVote(nn.Module):
    """The majority of several networks; a logit is the log of the votes, half a vote added."""

    def __init__(self, voters: nn.ModuleList) -> None:
        super().__init__()
        self.voters = voters

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        answers = torch.stack([voter(images) for voter in self.voters])
        return (F.one_hot(answers.argmax(2), answers.shape[2]).sum(0) + 0.5).log()


class MeanProbability(nn.Module):
    """The log of the voters' mean probability: what votes are, with a slope."""

    def __init__(self, voters: nn.ModuleList) -> None:
        super().__init__()
        self.voters = voters

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        return torch.stack([voter(images).log_softmax(1) for voter in self.voters]).logsumexp(0)


def vaccination_loss(batch: TrainingBatch) -> Tensor:
    """sum over qualities q of -log p_q(y | JPEG_q(x)): each voter learns at one quality."""
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
    """The vote behind the blocks."""
    return PreprocessedModel(
        loader.trained(voting_networks(loader.shape, loader.classes)), random_block_quality
    )


def bpda(loader: Loader) -> nn.Module:
    """Neither the codec nor a vote has a slope: the identity and probabilities do."""
    vote = cast(MajorityVote, loader.trained(voting_networks(loader.shape, loader.classes)))
    change: Preprocessing = straight_through(random_block_quality)
    return PreprocessedModel(MeanProbability(vote.voters), change)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the vote of four vaccinated networks."""
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

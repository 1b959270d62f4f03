"""A fresh copy of a defense, which no attack has queried, and its votes."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.batches import FRESH_ROWS, noise_batch
from bench.core.outcomes import NO_ANSWER
from bench.data.image_rows import CleanImages, blocks
from bench.engine.answers import predicted_labels
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import pad_rows

VOTES = 20  # draws of a declared-random defense in the referee's final decision
CONFIRMATION_DRAWS = 10  # draws that confirm a success before its item is retired
VOTE_SHARE = 0.6  # of the votes must reach the goal
CONFIRMATION_BATCH = 8  # confirmations run in batches of a multiple of so many rows


class FreshAnswers(NamedTuple):
    """The answers of a defense to n images."""

    logits: Tensor
    """[n, K]: the mean over the draws."""
    label: Tensor
    """[n] int64: the class, also of a rejected image; -1 where the answer is not finite."""
    confidence: Tensor
    """[n]: the mean softmax probability of that class."""
    votes: Tensor
    """[draws, n] int64 labels; REJECTED where a draw rejects the image."""
    rejection: Tensor
    """[n]: the mean over draws of the rejection score less its threshold; -inf without one."""
    log_shares: Tensor
    """[n, K] float64: the logarithm of the mean softmax over the draws."""


class FreshModel:
    """A fresh copy of a defense, evaluated in blocks of rows.

    Args:
        module: images to logits [n, K], with the rejection score as column K where it rejects.
        noise: the random state of a declared-random defense.
        rejects: whether answers end with a rejection score.
    """

    def __init__(
        self, module: nn.Module, *, noise: SeededNoise | None = None, rejects: bool = False
    ) -> None:
        self.model_access = ModelAccess(module, noise=noise, rejects=rejects)
        self.noise = noise
        self.rows = FRESH_ROWS if noise is None else noise.rows
        """Rows of a block: 64, or of a declared-random defense those of a noise group."""

    def answer(
        self, images: CleanImages, groups: Iterable[int], *, draws: int = VOTES
    ) -> FreshAnswers:
        """The answers to images [n, C, H, W], one block of rows after the other.

        Args:
            images: n >= 1 images.
            groups: the noise group of each block.
            draws: votes of a declared-random defense; others have one.

        Raises:
            ValueError: there is no image.
        """
        if not len(images):
            raise ValueError("the fresh model needs at least one image")
        parts = []
        for group, block in zip(groups, blocks(images, self.rows), strict=True):
            if self.noise is not None:
                self.noise.begin(group)
            parts.append(self._group(block, draws if self.noise is not None else 1))
        joined = [torch.cat(column, -1) for column in zip(*(p[1:-1] for p in parts), strict=True)]
        logits, log_shares = (torch.cat([part[c] for part in parts]) for c in (0, -1))
        return FreshAnswers._make([logits, *joined, log_shares])

    def labels(self, images: Tensor) -> Tensor:
        """Labels [1, n] of images [n, C, H, W] by a deterministic defense, in one batch."""
        whole = -(-len(images) // CONFIRMATION_BATCH) * CONFIRMATION_BATCH
        return self.votes(
            self.model_access.single_draw_logits(pad_rows(images, whole))[: len(images)]
        )[None]

    def votes(self, answers: Tensor) -> Tensor:
        """The labels [..., n] of whole answers [..., n, K]."""
        return predicted_labels(answers, rejects=self.model_access.rejects)

    def confirmation_votes(
        self, images: Tensor, group: int, noise: SeededNoise
    ) -> Generator[Tensor]:
        """Yields labels [n] of images [n, C, H, W] of one noise group, on draws not used before.

        CONFIRMATION_DRAWS times. Where the iterator is closed early, the next confirmation still
        begins at the draw after the last of these.
        """
        noise.resume(group)
        model_access = ModelAccess(
            self.model_access.module, noise=noise, rejects=self.model_access.rejects
        )
        full, first = pad_rows(images, noise_batch(len(images))), noise.calls[group]
        try:
            for _ in range(CONFIRMATION_DRAWS):
                yield self.votes(model_access.single_draw_logits(full))[: len(images)]
        finally:
            noise.calls[group] = first + CONFIRMATION_DRAWS

    def _group(self, block: Tensor, draws: int) -> FreshAnswers:
        full = pad_rows(block, noise_batch(len(block)))
        answers = torch.stack(
            [self.model_access.single_draw_logits(full)[: len(block)] for _ in range(draws)]
        )
        votes = self.votes(answers)
        score = torch.full_like(answers[..., 0], -torch.inf)
        if self.model_access.rejects:
            answers, score = answers[..., :-1], answers[..., -1]
        label = torch.where(votes == NO_ANSWER, votes, answers.argmax(2)).mode(0).values
        shares = answers.double().softmax(2).mean(0)
        log_shares = answers.double().log_softmax(2).logsumexp(0) - math.log(draws)
        confidence = shares.gather(1, label.clamp_min(0)[:, None])[:, 0]
        confidence = torch.where(label >= 0, confidence, 0).nan_to_num(0.0)
        score = torch.where(score.isfinite(), score, -torch.inf).mean(0)
        return FreshAnswers(
            answers.mean(0), label, confidence.float(), votes, score.float(), log_shares
        )

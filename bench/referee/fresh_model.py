"""A fresh copy of a defense that no attack has queried, and its votes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.outcomes import NO_ANSWER
from bench.engine.answers import predicted_labels
from bench.engine.cell_spec import NOISE_GROUP
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import pad_rows

VOTES = 20  # draws of a declared-random defense that the referee lets vote


CONFIRMATION_DRAWS = 10  # draws on which a claim must stand before its row is retired


VOTE_SHARE = 0.6  # of the votes must be wrong


CONFIRMATION_BATCH = 8  # claims of a faster form are asked in multiples of so many


class FreshAnswers(NamedTuple):
    """What a defense says to images: [n] each, logits [n, K]."""

    logits: Tensor
    """Of the first draw for the margin of a deterministic defense; the mean over draws else."""
    label: Tensor
    """The class named, also where the image is rejected; -1 where the answer is not finite."""
    confidence: Tensor
    votes: Tensor
    """[draws, n] labels; REJECTED where a draw refuses the image."""
    rejection: Tensor
    """The mean over draws of the rejection score less its threshold; -inf without a finite one."""


class FreshModel:
    """A fresh copy of a defense, asked in closed groups of 64; `rejects` as a `Target`."""

    def __init__(
        self, module: nn.Module, *, noise: SeededNoise | None = None, rejects: bool = False
    ) -> None:
        self.model_access = ModelAccess(module, noise=noise, rejects=rejects)
        self.noise = noise

    def answer(self, images: Tensor, groups: Iterable[int], *, draws: int = VOTES) -> FreshAnswers:
        """Labels of images [n, C, H, W], 64 at a time; `groups` names the groups for the noise."""
        if not len(images):
            raise ValueError("the referee was asked about no image")
        parts = []
        for group, block in zip(groups, torch.split(images, NOISE_GROUP), strict=True):
            if self.noise is not None:
                self.noise.begin(group)
            parts.append(self._group(block, draws if self.noise is not None else 1))
        joined = [torch.cat(column, -1) for column in zip(*(p[1:] for p in parts), strict=True)]
        return FreshAnswers(torch.cat([part.logits for part in parts]), *joined)

    def labels(self, images: Tensor) -> Tensor:
        """[1, n]: what a defense without randomness answers, -1 for no answer, in one batch."""
        whole = -(-len(images) // CONFIRMATION_BATCH) * CONFIRMATION_BATCH
        return self.votes(
            self.model_access.single_draw_logits(pad_rows(images, whole))[: len(images)]
        )[None]

    def votes(self, answers: Tensor) -> Tensor:
        """[..., n]: the labels of whole answers [..., n, K]."""
        return predicted_labels(answers, rejects=self.model_access.rejects)

    def confirmation_votes(self, images: Tensor, group: int, noise: SeededNoise) -> Tensor:
        """[FRESH, n]: what a random defense answers images of one group on draws not used yet."""
        noise.resume(group)
        target = ModelAccess(
            self.model_access.module, noise=noise, rejects=self.model_access.rejects
        )
        full = pad_rows(images, NOISE_GROUP)
        votes = torch.stack(
            [self.votes(target.single_draw_logits(full)) for _ in range(CONFIRMATION_DRAWS)]
        )
        return votes[:, : len(images)]

    def _group(self, block: Tensor, draws: int) -> FreshAnswers:
        full = pad_rows(block, NOISE_GROUP)
        answers = torch.stack(
            [self.model_access.single_draw_logits(full)[: len(block)] for _ in range(draws)]
        )
        votes = self.votes(answers)
        score = torch.full_like(answers[..., 0], -torch.inf)
        if self.model_access.rejects:
            answers, score = answers[..., :-1], answers[..., -1]
        label = torch.where(votes == NO_ANSWER, votes, answers.argmax(2)).mode(0).values
        shares = answers.double().softmax(2).mean(0)
        confidence = shares.gather(1, label.clamp_min(0)[:, None])[:, 0]
        confidence = torch.where(label >= 0, confidence, 0).nan_to_num(0.0)
        score = torch.where(score.isfinite(), score, -torch.inf).mean(0)
        return FreshAnswers(answers.mean(0), label, confidence.float(), votes, score.float())

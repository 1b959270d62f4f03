"""Answers by image: a model that says the same of the same image is not asked about it twice.

A random search over small images comes back to what it has asked: where a square is one pixel of
8 x 8, a row that does not gain has 64 questions, and puts them again and again.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import pad_rows, padded_size
from bench.threats.random_numbers import mix

ENTRIES = 2**16  # answers at hand, each where its fingerprint says: the later one stays
BLOCK = 2**15  # pixels at a time: their products stay in the cache


class CachedAnswers(NamedTuple):
    """What was said of which images, each in the seat that its fingerprint names."""

    fingerprints: Tensor
    """[seats] int64; of a seat that is empty one that belongs elsewhere."""
    answers: Tensor
    """[seats, K]."""

    @classmethod
    def empty(cls, like: Tensor) -> CachedAnswers:
        """For answers [n, K] of this kind."""
        elsewhere = torch.arange(ENTRIES, device=like.device) ^ 1
        return cls(elsewhere, like.new_empty(ENTRIES, like.shape[1]))

    def store(self, prints: Tensor, answers: Tensor) -> None:
        """What was said of images [u] that differ; of two with the same seat one is kept."""
        seat = prints & (ENTRIES - 1)
        self.fingerprints[seat] = prints
        sits = self.fingerprints[seat] == prints
        self.answers[seat[sits]] = answers[sits]


class QueryCache(nn.Module):
    """A model that answers alike twice, for many questions at once.

    What was answered is not asked again while it is remembered, nor what stands twice among the
    questions.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], max_batch: int) -> None:
        super().__init__()
        self.logits = logits
        """[n, C, H, W] to [n, K]: asks the model."""
        self.most = max_batch
        """Rows of one call, or nearly: what lies between the layers stays near the processor."""
        self.cache: CachedAnswers | None = None

    @classmethod
    def wrap(cls, door: ModelAccess, most: int) -> ModelAccess:
        """The same door to the same model, which is not asked twice."""
        other = copy.copy(door)
        other.module = cls(door.logits, most)
        return other

    def forward(self, images: Tensor) -> Tensor:
        """[n, K], as if each were asked."""
        prints, place = torch.unique(fingerprints(images), return_inverse=True)
        # Of images that are alike any one will do.
        every = torch.arange(len(place), device=place.device)
        one = torch.empty_like(prints).index_copy_(0, place, every)
        if self.cache is None:
            answers = self._asked(images[one])
            self.cache = CachedAnswers.empty(answers)
            self.cache.store(prints, answers)
            return answers[place]
        seat = prints & (ENTRIES - 1)
        answers = self.cache.answers[seat]
        fresh = (self.cache.fingerprints[seat] != prints).nonzero()[:, 0]
        if len(fresh):
            answers[fresh] = self._asked(images[one[fresh]])
            self.cache.store(prints[fresh], answers[fresh])
        return answers[place]

    def _asked(self, images: Tensor) -> Tensor:
        calls = max(1, round(len(images) / self.most))
        rows = padded_size(-(-len(images) // calls))
        parts = torch.split(pad_rows(images, padded_size(len(images))), rows)
        return torch.cat([self.logits(part) for part in parts])[: len(images)]


def fingerprints(images: Tensor) -> Tensor:
    """[n] int64 of images [n, ...] float32: alike where every bit is, else alike by accident only.

    The bits of each pixel are multiplied by a word of its place; the upper half of a product,
    which is well mixed, is brought down to the lower one, and all are summed.
    """
    flat = images.flatten(1).contiguous()
    parts = []
    for part in torch.split(flat, max(1, BLOCK // max(1, flat.shape[1]))):
        product = part.view(torch.int32) * words(flat.shape[1], flat.device)
        parts.append(product.bitwise_xor_(product >> 32).sum(1))
    return torch.cat(parts)


@functools.lru_cache(maxsize=16)
def words(count: int, device: torch.device) -> Tensor:
    """[count] int64: a word for each place."""
    return mix(torch.arange(1, count + 1, device=device))

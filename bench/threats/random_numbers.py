"""Keyed random numbers: a function of seed, attack, example, restart, step and name."""

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor


class RandomNumbers(Protocol):
    """Random numbers that depend on the example, not on the batch."""

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform [n, *shape] in [0, 1), by example, restart, step and `name`."""

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal [n, *shape], keyed like `uniform`."""


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_STRIDE = 0xD1342543DE82EF95 - 2**64
_BLOCK_ROWS = 32  # rows at a time where they are long, to stay in the cache
_BLOCK_WORDS = 2**15  # words at a time where rows are short


def name_to_int64(name: str) -> int:
    """A name as a signed 64-bit integer, from its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64, on int64 [n] or any other shape; returns a new tensor."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: the arithmetic shift without the copies of the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def example_key(seed: int, name: str, example: Tensor, run: Tensor) -> Tensor:
    """A key [n] int64 for each (seed, attack name, example [n], restart [n])."""
    # Filled on the device: a copy from the host would wait for it.
    start = mix(torch.full((1,), seed, dtype=torch.int64, device=example.device))
    start = start + name_to_int64(name)
    return mix(mix(mix(start) + example.long() * _GOLDEN) + run.long() * _STRIDE)


class KeyedRandomNumbers:
    """Random numbers as a function of (key, step, name, position), without a generator.

    They do not depend on the batch, the order of examples or the number of workers.
    `key` [n] int64 is of `example_key`, `t` [n] int64 the step.
    """

    def __init__(self, key: Tensor, t: Tensor) -> None:
        self.key, self.t = key, t

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform [n, *shape] in [0, 1), of 24 random bits each."""
        size = math.prod(shape)
        rows = [_unit(words, size) for words in self._words(name, (size + 1) // 2)]
        return torch.cat(rows).view(-1, *shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal [n, *shape], by Box-Muller."""
        size = math.prod(shape)
        half = (size + 1) // 2
        rows = []
        for words in self._words(name, half):
            unit = _unit(words, 2 * half)
            length = torch.sqrt(-2 * torch.log(unit[:, :half] + 2.0**-25))
            angle = (2 * math.pi) * unit[:, half:]
            both = torch.cat([length * torch.cos(angle), length * torch.sin(angle)], 1)
            rows.append(both[:, :size])
        return torch.cat(rows).view(-1, *shape)

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform int64 [n, *shape] in [0, high)."""
        size = math.prod(shape)
        rows = [_shift(words, 1) % high for words in self._words(name, size)]
        return torch.cat(rows).view(-1, *shape)

    def _words(self, name: str, count: int) -> list[Tensor]:
        """`count` random 64-bit words per row, in blocks of rows."""
        key = mix(self.key + self.t.long() * _GOLDEN + name_to_int64(name))
        position = torch.arange(count, dtype=torch.int64, device=key.device) * _GOLDEN
        rows = max(_BLOCK_ROWS, _BLOCK_WORDS // max(count, 1))
        return [mix(block[:, None] + position) for block in torch.split(key, rows)]


def _unit(words: Tensor, size: int) -> Tensor:
    """The first `size` of two floats per word, in [0, 1)."""
    halves = words.view(torch.int32)
    return ((halves & 0xFFFFFF).float() * 2.0**-24)[:, :size]

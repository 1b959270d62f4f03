"""Building blocks that several plugins use: losses per example, keyed numbers, straight-through.

A loss takes logits [n, K] and labels [n] and gives [n]; it is never averaged, so that an example's
gradient does not depend on the batch around it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.records import PluginError
from bench.stats import clopper_pearson as clopper_pearson

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [n, K], label [n]) -> [n]; an attack climbs it."""

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_STRIDE = 0xD1342543DE82EF95 - 2**64
_BLOCK = 32  # rows at a time where they are long: the working set stays in the cache
_SPAN = 2**15  # words at a time where rows are short


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)[label]."""
    return F.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """max_{j != label} z_j - z_label: positive exactly where the answer is wrong."""
    return logits.scatter(1, label[:, None], -math.inf).amax(1) - pick(logits, label)


def pick(logits: Tensor, column: Tensor) -> Tensor:
    """logits[i, column[i]]."""
    return logits.gather(1, column[:, None])[:, 0]


def margin_to(rival: Tensor) -> Loss:
    """z_rival - z_label: towards one class a row."""
    return lambda logits, label: pick(logits, rival) - pick(logits, label)


def per_image(value: Tensor) -> Tensor:
    """[n] shaped to multiply images [n, C, H, W] row by row."""
    return value[:, None, None, None]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(images)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function` going forward, to the bit; the identity going back (BPDA, arXiv:1802.00420).

    `function` maps images to images of the same shape.
    """
    return lambda images: _StraightThrough.apply(images, function)


def of_kind(value: object, kind: type[T], what: str) -> T:
    """The value, known to be of this kind; PluginError where it is not, or is missing."""
    if not isinstance(value, kind):
        raise PluginError(f"{what} is {type(value).__name__}; {kind.__name__} was expected.")
    return value


def word(name: str) -> int:
    """A name as a signed 64-bit number."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 tensors; a new tensor."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: the arithmetic one, then the sign's copies masked away."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def example_key(seed: int, name: str, example: Tensor, run: Tensor) -> Tensor:
    """[n] int64: one key for each (seed, attack name, example, run)."""
    start = mix(torch.tensor([seed], dtype=torch.int64, device=example.device)) + word(name)
    return mix(mix(mix(start) + example.long() * _GOLDEN) + run.long() * _STRIDE)


class KeyedDraws:
    """Random numbers as a function of (key, step, name, position): no generator, no order.

    An example's numbers do not depend on the batch, the slot, the refill or the number of workers.
    """

    def __init__(self, key: Tensor, t: Tensor) -> None:
        self.key, self.t = key, t

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] in [0, 1): 24 random bits each."""
        size = math.prod(shape)
        rows = [_unit(words, size) for words in self._words(name, (size + 1) // 2)]
        return torch.cat(rows).view(-1, *shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape], standard normal (Box-Muller)."""
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
        """[n, *shape] int64 in [0, high)."""
        size = math.prod(shape)
        rows = [_shift(words, 1) % high for words in self._words(name, size)]
        return torch.cat(rows).view(-1, *shape)

    def _words(self, name: str, count: int) -> list[Tensor]:
        """Blocks of rows of `count` random 64-bit words."""
        key = mix(self.key + self.t.long() * _GOLDEN + word(name))
        position = torch.arange(count, dtype=torch.int64, device=key.device) * _GOLDEN
        rows = max(_BLOCK, _SPAN // max(count, 1))
        return [mix(block[:, None] + position) for block in torch.split(key, rows)]


def _unit(words: Tensor, size: int) -> Tensor:
    """Two floats a word, in [0, 1)."""
    halves = words.view(torch.int32)
    return ((halves & 0xFFFFFF).float() * 2.0**-24)[:, :size]

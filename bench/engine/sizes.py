"""Batch sizes: the smallest in which rows get the bits that they get anywhere else.

Multiples of 32 are such by the house's rule. A smaller step is worth a question to the defense, put
once for each of its forms and sizes: does a batch so long say what the whole unit says?
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor, nn

from bench.problem import pad, padded
from bench.target import Target

STEP = 8  # rows: no kernel at hand is quicker in fewer
LARGEST = 128  # rows: beyond it the padding is a small part of the batch
PRICE = 4  # steps that a row of the question costs, as few rows stay to the end

Key = tuple[int, tuple[int, ...], int]
KNOWN: WeakKeyDictionary[nn.Module, dict[Key, bool]] = WeakKeyDictionary()
"""What modules have said, each as long as it lives: (rows, shape of an image, access)."""


def fitting(door: Target, images: Tensor, rows: int, steps: int) -> int:
    """The smallest batch for so many `rows`, which may have so many steps to go.

    `images` [n, C, H, W], n >= 1, are what is asked. The question is put where the rows that it
    may spare until the end are worth its price.
    """
    few, unit = stepped(rows), padded(rows)
    if few == unit or unit > LARGEST:
        return unit
    answer = KNOWN.setdefault(door.module, {}).get(_key(door, images, few))
    if answer is None and (unit - few) * steps >= PRICE * (few + unit):
        answer = steady(door, images, few)
    return few if answer else unit


def stepped(rows: int) -> int:
    """The next multiple of STEP, at least one."""
    return max(STEP, -(-rows // STEP) * STEP)


def _key(door: Target, images: Tensor, few: int) -> Key:
    return few, tuple(images.shape[1:]), int(door.access)


def steady(door: Target, images: Tensor, few: int) -> bool:
    """Whether `few` rows get the bits that they get in a batch filled up to whole units."""
    probe = pad(images[:few], few)
    answer = door.steady(probe, pad(probe, padded(few)))
    KNOWN.setdefault(door.module, {})[_key(door, images, few)] = answer
    return answer

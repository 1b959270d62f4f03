"""Batch sizes: the smallest in which rows get the bits that they get anywhere else.

Multiples of 32 are such by the house's rule. A smaller step is worth a question to the defense, put
once for each of its forms and sizes: does a batch so long say what the whole unit says?
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import pad_rows, padded_size

STEP = 8  # rows: no kernel at hand is quicker in fewer
LARGEST = 128  # rows: beyond it the padding is a small part of the batch
PRICE = 4  # steps that a row of the question costs, as few rows stay to the end

Kind: TypeAlias = tuple[tuple[int, ...], int]
"""Shape of an image, access."""


class Probe(NamedTuple):
    """Images that fill whole units, and what a door says of them."""

    images: Tensor
    said: tuple[Tensor, ...]


class KnownSizes(NamedTuple):
    """What one module has said of batch sizes."""

    fits: dict[tuple[int, Kind], bool]
    """By rows: whether so few get the bits that they get in whole units."""
    probes: dict[tuple[int, Kind], Probe]
    """By rows: what each smaller batch is held against."""


KNOWN: WeakKeyDictionary[nn.Module, KnownSizes] = WeakKeyDictionary()
"""Each as long as the module lives."""


def smallest_exact_batch(door: ModelAccess, images: Tensor, rows: int, steps: int) -> int:
    """The smallest batch for so many `rows`, which may have so many steps to go.

    `images` [n, C, H, W], n >= 1, are what is asked. The question is put where the rows that it
    may spare until the end are worth its price.
    """
    few, unit = rounded_size(rows), padded_size(rows)
    if few == unit or unit > LARGEST:
        return unit
    known, kind = KNOWN.setdefault(door.module, KnownSizes({}, {})), kind_of(door, images)
    answer = known.fits.get((few, kind))
    asked = few if (unit, kind) in known.probes else few + unit
    if answer is None and (unit - few) * steps >= PRICE * asked:
        answer = known.fits[few, kind] = same_bits(door, known.probes, kind, images, few)
    return few if answer else unit


def rounded_size(rows: int) -> int:
    """The next multiple of STEP, at least one."""
    return max(STEP, -(-rows // STEP) * STEP)


def kind_of(door: ModelAccess, images: Tensor) -> Kind:
    """What is asked, but for the number of rows."""
    return tuple(images.shape[1:]), int(door.access)


def same_bits(
    door: ModelAccess, probes: dict[tuple[int, Kind], Probe], kind: Kind, images: Tensor, few: int
) -> bool:
    """Whether `few` rows get the bits that they get in a batch filled up to whole units."""
    unit = padded_size(few)
    if (unit, kind) not in probes:
        whole = pad_rows(images[:unit], unit)
        probes[unit, kind] = Probe(whole, tuple(door.observable_answers(whole)))
    probe = probes[unit, kind]
    pairs = zip(door.observable_answers(probe.images[:few]), probe.said, strict=True)
    return all(torch.equal(one, other[:few]) for one, other in pairs)

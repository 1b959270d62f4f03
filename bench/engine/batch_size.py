"""Batch sizes: the smallest batch in which every row gets bit-identical answers.

Batches are multiples of 32 rows, in which CPU kernels give every row the same bits. A smaller batch
is used where a self-test shows that the model gives the same bits there; the self-test runs once
for each model and size.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import pad_rows, padded_size

SMALL_UNIT = 8  # rows; smaller batches were no faster on any kernel measured
MAX_TESTED_BATCH = 128  # rows; padding is a small part of larger batches
TEST_COST = 4  # steps that a row of the self-test must save, since few rows stay to the end

QueryKind: TypeAlias = tuple[tuple[int, ...], int]
"""Shape of an image, access."""


class Probe(NamedTuple):
    """Images that fill whole units, and a model's answers."""

    images: Tensor
    """[m, C, H, W]."""
    answers: tuple[Tensor, ...]
    """Logits [m, K] and, where the access allows, gradients [m, C, H, W]."""


class KnownSizes(NamedTuple):
    """The self-test results of one module."""

    exact: dict[tuple[int, QueryKind], bool]
    """By rows: whether a batch of so few gives the same bits as whole units."""
    probes: dict[tuple[int, QueryKind], Probe]
    """By rows: the answers that smaller batches are compared with."""


KNOWN: WeakKeyDictionary[nn.Module, KnownSizes] = WeakKeyDictionary()
"""By module; an entry is dropped together with its module."""


def smallest_exact_batch(model_access: ModelAccess, images: Tensor, rows: int, steps: int) -> int:
    """The smallest batch for `rows` rows in which answers have the same bits as in whole units.

    Args:
        model_access: the model that is queried.
        images: [n, C, H, W], n >= 1, images like those that are queried.
        rows: how many rows there are.
        steps: how many steps they may still make; the self-test runs where they outweigh its cost.
    """
    few, unit = rounded_size(rows), padded_size(rows)
    if few == unit or unit > MAX_TESTED_BATCH:
        return unit
    known = KNOWN.setdefault(model_access.module, KnownSizes({}, {}))
    kind = query_kind(model_access, images)
    exact = known.exact.get((few, kind))
    cost = few if (unit, kind) in known.probes else few + unit
    if exact is None and (unit - few) * steps >= TEST_COST * cost:
        exact = known.exact[few, kind] = same_bits(model_access, known.probes, kind, images, few)
    return few if exact else unit


def rounded_size(rows: int) -> int:
    """The next multiple of SMALL_UNIT, at least one unit."""
    return max(SMALL_UNIT, -(-rows // SMALL_UNIT) * SMALL_UNIT)


def query_kind(model_access: ModelAccess, images: Tensor) -> QueryKind:
    """Image shape and access of queries of images [n, C, H, W], whatever n is."""
    return tuple(images.shape[1:]), int(model_access.access)


def same_bits(
    model_access: ModelAccess,
    probes: dict[tuple[int, QueryKind], Probe],
    kind: QueryKind,
    images: Tensor,
    few: int,
) -> bool:
    """Whether `few` of the images [n, C, H, W] get the same bits alone and in whole units.

    Adds the answers of the whole unit to `probes` where they are missing.
    """
    unit = padded_size(few)
    if (unit, kind) not in probes:
        whole = pad_rows(images[:unit], unit)
        probes[unit, kind] = Probe(whole, tuple(model_access.observable_answers(whole)))
    probe = probes[unit, kind]
    pairs = zip(model_access.observable_answers(probe.images[:few]), probe.answers, strict=True)
    return all(torch.equal(one, other[:few]) for one, other in pairs)

"""The true class on the clean images and on the worst images that an attack offered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.outcomes import Outcomes


class TrueClass(NamedTuple):
    """How the true class of each example fares on the worst of some images; arrays [n].

    NaN, and -1 for a rank, where no image of the example was measured.
    """

    confidence: npt.NDArray[np.float64]
    """Softmax of the true class, the least."""
    loss: npt.NDArray[np.float64]
    """Cross-entropy, the greatest."""
    rank: npt.NDArray[np.int64]
    """Number of classes that score above the true one, the greatest."""

    @property
    def measured(self) -> npt.NDArray[np.bool_]:
        """[n]: whether an image of the example was measured."""
        return ~np.isnan(self.confidence)


def true_class(
    n: int, outcomes: Outcomes, example: npt.NDArray[np.int32] | None = None
) -> TrueClass:
    """The worst image of each of n examples among outcomes [m]; `example` [m], else their items."""
    index = outcomes.item if example is None else example
    confidence, loss, rank = np.full(n, np.nan), np.full(n, np.nan), np.full(n, -1)
    np.fmin.at(confidence, index, outcomes.true_confidence.astype(np.float64))
    np.fmax.at(loss, index, outcomes.loss.astype(np.float64))
    np.maximum.at(rank, index, outcomes.true_rank.astype(np.int64))
    return TrueClass(confidence, loss, rank)


def worst_of(parts: Iterable[TrueClass]) -> TrueClass:
    """The worst images over all parts; raises ValueError where there is none."""
    columns = list(zip(*parts, strict=True))
    if not columns:
        raise ValueError("no part was given; the worst of at least one is needed.")
    confidence, loss, rank = columns
    return TrueClass(np.fmin.reduce(confidence), np.fmax.reduce(loss), np.maximum.reduce(rank))

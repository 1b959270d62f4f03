"""How many images a model is queried with at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

SMALL_IMAGE = 256  # values; of such images more rows at once cost less for each
DEFAULT_ROWS = (512, 128)  # rows of a batch of small images, and of larger ones
FRESH_ROWS = 64  # rows at once of the fresh model with which the referee verifies
NOISE_ROWS = (512, FRESH_ROWS)  # rows of one random state, for small images and for larger ones


def default_batch(shape: Sequence[int]) -> int:
    """Rows of a full batch of images of this shape (C, H, W).

    >>> default_batch((1, 8, 8)), default_batch((3, 32, 32))
    (512, 128)
    """
    return _rows_for(shape, DEFAULT_ROWS)


def noise_rows(shape: Sequence[int]) -> int:
    """Rows of images of this shape (C, H, W) that share a random state of a random defense.

    They run as one batch, because its draws belong to all of them, and are recorded together.

    >>> noise_rows((1, 8, 8)), noise_rows((3, 32, 32))
    (512, 64)
    """
    return _rows_for(shape, NOISE_ROWS)


def _rows_for(shape: Sequence[int], rows: tuple[int, int]) -> int:
    small, large = rows
    return small if math.prod(shape) <= SMALL_IMAGE else large


def noise_batch(count: int) -> int:
    """Rows of the batch in which `count` images of one noise group run; its draws depend on it.

    >>> noise_batch(1), noise_batch(64), noise_batch(500)
    (64, 64, 512)
    """
    return max(1, -(-count // FRESH_ROWS)) * FRESH_ROWS

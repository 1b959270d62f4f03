"""How many images a run queries at once where no size is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

SMALL_IMAGE = 256  # values; of such images more rows at once cost less for each
DEFAULT_ROWS = (512, 128)  # rows of a batch of small images, and of larger ones


def default_batch(shape: Sequence[int]) -> int:
    """Rows of a full batch of images of this shape (C, H, W).

    >>> default_batch((1, 8, 8)), default_batch((3, 32, 32))
    (512, 128)
    """
    small, large = DEFAULT_ROWS
    return small if math.prod(shape) <= SMALL_IMAGE else large

"""The rows of a full batch: more of small images."""

from __future__ import annotations

import pytest

from bench.core.batches import default_batch


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1, 8, 8), 512),
        ((1, 16, 16), 512),
        ((1, 16, 17), 128),
        ((1, 28, 28), 128),
        ((3, 9, 9), 512),
    ],
)
def test_images_of_at_most_256_values_run_512_at_once(shape: tuple[int, ...], rows: int) -> None:
    assert default_batch(shape) == rows

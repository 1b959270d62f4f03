"""The rows of a full batch, and of a noise group: more of small images."""

from __future__ import annotations

import pytest

from bench.core.batches import default_batch, noise_batch, noise_rows


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
    assert noise_rows(shape) == (512 if rows == 512 else 64)


@pytest.mark.parametrize(
    ("count", "rows"), [(0, 64), (1, 64), (64, 64), (65, 128), (500, 512), (512, 512)]
)
def test_a_noise_group_runs_in_whole_blocks_of_64(count: int, rows: int) -> None:
    assert noise_batch(count) == rows

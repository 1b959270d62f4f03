"""The digits data set of scikit-learn: 8 x 8 handwritten digits, no download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.plugin import Dataset, Images, Split, hookimpl
from plugins.datasets._balanced_order import balanced_order

TEST = 500
"""Images of the test half, 50 of each class; the other 1297 are for training."""


def read(folder: Path | None) -> Images:
    """All 1797 images; the grey level k of 0..16 becomes the pixel round(255 k / 16)."""
    from sklearn.datasets import load_digits  # imported here: it takes seconds

    bunch = load_digits()
    pixels = np.rint(255 * bunch.images / 16).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    order = balanced_order(labels, "digits")
    test, train = order[:TEST], np.sort(order[TEST:])
    return Images(
        train=Split(pixels[train], labels[train]),
        test=Split(pixels[test], labels[test]),
        index=test,
    )


@hookimpl
def bench_datasets() -> Iterator[Dataset]:
    """Register the digits."""
    yield Dataset(
        name="digits",
        classes=tuple("0123456789"),
        shape=(1, 8, 8),
        load=read,
        test_size=TEST,
        digest="bebe84fa20ae36890c493490152db2933fa85b9c81d99b6ef275e8938c7bc035",
        train_digest="8d4d6d84400f2abcda293e6f961e6f98e30737f2c0938f7ef5f751b48a432b00",
        cite="https://archive.ics.uci.edu/dataset/80",
        summary="1797 handwritten digits, 8 x 8 grey levels, included in scikit-learn.",
    )

"""Contract of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Split(NamedTuple):
    """Images and labels of one half of a data set."""

    images: npt.NDArray[np.uint8]
    """[n, C, H, W]: the pixel k stands for k / 255."""
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """A data set in memory."""

    train: Split | None
    """None where only the test half is there."""
    test: Split
    """In the fixed order of the index list: the first n are *the* n examples."""
    index: npt.NDArray[np.int64]
    """Where each test image stands in the official file."""


@dataclass(frozen=True)
class Dataset:
    """A named data set; reading it waits until it is needed."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, H, W)."""
    load: Callable[[Path | None], Images]
    """Reads it from the data folder (None: the folder is not needed); may download into it."""
    test_size: int
    digest: str = ""
    """SHA-256 of the test half in index order; refused when it differs. Empty: unchecked."""
    train_digest: str = ""
    """SHA-256 of the training half; refused when it differs. Empty: unchecked."""
    cite: str = ""
    summary: str = ""
    place: str = ""
    """Its folder inside the data folder, where that has another name than the data set."""

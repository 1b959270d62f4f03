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
    """[n, C, H, W]: the value k stands for k / 255."""
    labels: npt.NDArray[np.int64]
    """[n]."""


@dataclass(frozen=True)
class Images:
    """A data set in memory: both halves."""

    train: Split | None
    """None where there is only the test half."""
    test: Split
    """In a fixed order: an evaluation on n examples uses the first n."""
    index: npt.NDArray[np.int64]
    """[n]: position of each test image in the official file."""


@dataclass(frozen=True)
class Dataset:
    """A data set, which is read when it is first needed."""

    name: str
    classes: tuple[str, ...]
    """Class names, in the order of the labels."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    load: Callable[[Path | None], Images]
    """Reads the images from the data folder; may download them into it."""
    test_size: int
    digest: str = ""
    """SHA-256 of the test half in this order; other data are refused. Empty: not checked."""
    train_digest: str = ""
    """SHA-256 of the training half; other data are refused. Empty: not checked."""
    cite: str = ""
    summary: str = ""
    place: str = ""
    """Its folder inside the data folder, where that does not have the data set's name."""
    local: bool = False
    """Whether the images are the user's own files: without an official order, never downloaded."""
    problem: str = ""
    """Why it cannot be read on this machine, as a sentence; empty where nothing is known."""

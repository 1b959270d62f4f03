"""Data sets by name and digest: read once, checked, handed out read-only."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.core.folders import cache_folder
from bench.core.hashing import canonical
from bench.plugin import Dataset, Images, Split


@dataclass(frozen=True)
class Examples:
    """The first n test images of a data set, in its fixed order."""

    dataset: str
    images: npt.NDArray[np.uint8]
    """[n, C, H, W]."""
    labels: npt.NDArray[np.int64]
    digest: str
    """SHA-256 of images, labels and where they stand in the official file."""

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """[n, C, H, W] float32: images / 255."""
        return to_float(torch.tensor(self.images, device=device))


def to_float(images: Tensor) -> Tensor:
    """uint8 [n, C, H, W] as float32 in [0, 1], in the plain memory layout.

    One channel lets two layouts pass as contiguous, and convolutions differ between them in the
    last bit.
    """
    return images.clone(memory_format=torch.contiguous_format).float() / 255


def data_folder() -> Path:
    """Where data sets lie: $BENCH_DATA, else the cache folder."""
    named = os.environ.get("BENCH_DATA")
    return Path(named).expanduser() if named else cache_folder()


def load_dataset(dataset: Dataset) -> Images:
    """Both halves, checked against the record; read once a process.

    UnavailableError where the files are missing or are not the official ones, PluginError where the
    plugin's answer does not fit its own record.
    """
    return _read(dataset, data_folder())


def first_examples(dataset: Dataset, n: int) -> Examples:
    """The first n of the fixed order; BenchError where there are not so many."""
    if not 1 <= n <= dataset.test_size:
        raise BenchError(
            f"{n} examples were asked of {dataset.name}, whose test half holds "
            f"{dataset.test_size}; ask for 1 to {dataset.test_size}."
        )
    images = load_dataset(dataset)
    first = Split(images.test.images[:n], images.test.labels[:n])
    return Examples(dataset.name, *first, digest=content_digest(*first, images.index[:n]))


def training_digest(dataset: Dataset) -> str:
    """The declared digest of the training half, else that of the one here; empty without one."""
    if dataset.train_digest:
        return dataset.train_digest  # whatever differs from it is never read
    half = load_dataset(dataset).train
    return "" if half is None else content_digest(*half)


def content_digest(*arrays: npt.NDArray[Any]) -> str:
    """SHA-256 of images, labels and index, each after a line that tells its type and shape."""
    sha = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        sha.update(canonical([plain.dtype.str, list(plain.shape)]).encode())
        sha.update(plain.tobytes())
    return sha.hexdigest()


@lru_cache(maxsize=4)
def _read(dataset: Dataset, place: Path) -> Images:
    try:
        images = dataset.load(place)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise UnavailableError(f"{dataset.name} could not be read: {error}") from error
    wrong = _misfit(dataset, images)
    if wrong:
        raise PluginError(f"the data set {dataset.name} {wrong}.")
    found = content_digest(*images.test, images.index)
    if dataset.digest not in ("", found):
        raise UnavailableError(
            f"the test half of {dataset.name} in {place} has the digest {found[:12]}, expected "
            f"{dataset.digest[:12]}: these are not the official files; delete them there to have "
            "them downloaded again."
        )
    if images.train and dataset.train_digest not in ("", content_digest(*images.train)):
        raise UnavailableError(
            f"the training half of {dataset.name} in {place} is not the official one; delete its "
            "folder there to have it downloaded again."
        )
    for array in (images.index, *images.test, *(images.train or ())):
        array.flags.writeable = False
    return images


def _misfit(dataset: Dataset, images: Images) -> str:
    """What does not fit the record; empty when all does."""
    if len(images.test.images) != dataset.test_size:
        return f"read {len(images.test.images)} test images, its record says {dataset.test_size}"
    if images.index.shape != images.test.labels.shape or len(set(images.index.tolist())) != len(
        images.index
    ):
        return "does not give each test image one place of its own in the official file"
    for split in (images.test, images.train):
        wrong = "" if split is None else _crooked(dataset, split)
        if wrong:
            return wrong
    return ""


def _crooked(dataset: Dataset, split: Split) -> str:
    shape = (len(split.labels), *dataset.shape)
    if split.images.dtype != np.uint8 or split.images.shape != shape:
        return (
            f"read {split.images.dtype} {list(split.images.shape)}; uint8 {list(shape)} was "
            "expected"
        )
    if split.labels.dtype != np.int64 or split.labels.ndim != 1:
        return f"read labels as {split.labels.dtype}; int64 [n] was expected"
    if not ((split.labels >= 0) & (split.labels < len(dataset.classes))).all():
        return f"read labels outside 0 to {len(dataset.classes) - 1}"
    return ""

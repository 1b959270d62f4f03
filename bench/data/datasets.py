"""Reads data sets, checks them against their records and digests, and caches them read-only."""

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

from bench.core.cells import BALANCED_ORDER, EXAMPLE_ORDERS, FILE_ORDER
from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.core.folders import cache_folder
from bench.core.hashing import canonical
from bench.data.image_rows import CleanImages, clean_images, to_float
from bench.plugin import Dataset, Images, Split


@dataclass(frozen=True)
class Examples:
    """The first n test images of a data set in its fixed order."""

    dataset: str
    images: npt.NDArray[np.uint8]
    """[n, C, H, W]."""
    labels: npt.NDArray[np.int64]
    """[n]."""
    digest: str
    """SHA-256 of images, labels and their positions in the official file."""
    order: str = BALANCED_ORDER
    """One of EXAMPLE_ORDERS."""

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """The images as float32 [n, C, H, W] in [0, 1]."""
        return to_float(torch.tensor(self.images, device=device))

    def rows(self, device: torch.device | str) -> CleanImages:
        """The images as float32 [n, C, H, W]; of large sets, rows that are read in windows."""
        return clean_images(self.images, device)


def data_folder() -> Path:
    """The folder of data sets: $BENCH_DATA, else the cache folder."""
    named = os.environ.get("BENCH_DATA")
    return Path(named).expanduser() if named else cache_folder()


def load_dataset(dataset: Dataset) -> Images:
    """Both halves of a data set, checked against its record; read once a process.

    Raises UnavailableError for missing or altered files, PluginError for images unlike the record.
    """
    require_available(dataset)
    return _read(dataset, data_folder())


def require_available(dataset: Dataset) -> None:
    """Raise UnavailableError where the data set states why it cannot be read here."""
    if dataset.problem:
        raise UnavailableError(f"the data set {dataset.name} cannot be read: {dataset.problem}")


def first_examples(dataset: Dataset, n: int, order: str = BALANCED_ORDER) -> Examples:
    """The first n test images of the balanced order, or of the file's own order.

    The digest covers the positions in the file, so examples of two orders never have the same one.
    Raises BenchError where there are fewer, or the order is not known.
    """
    if order not in EXAMPLE_ORDERS:
        raise BenchError(f"--order is {order!r}; use one of {', '.join(EXAMPLE_ORDERS)}.")
    if order == FILE_ORDER and dataset.local:
        raise BenchError(
            f"{dataset.name} is a folder of files sorted by class and has no official order; use "
            f"--order {BALANCED_ORDER}."
        )
    require_available(dataset)
    if not 1 <= n <= dataset.test_size:
        raise BenchError(
            f"{n} examples of {dataset.name} were requested; use 1 to "
            f"{dataset.test_size}, the number of its test images."
        )
    images = load_dataset(dataset)
    chosen = np.argsort(images.index)[:n] if order == FILE_ORDER else slice(n)
    first = Split(images.test.images[chosen], images.test.labels[chosen])
    digest = content_digest(*first, images.index[chosen])
    return Examples(dataset.name, *first, digest=digest, order=order)


def training_digest(dataset: Dataset) -> str:
    """Digest of the training half: as declared, else computed; empty where there is none."""
    if dataset.train_digest:
        return dataset.train_digest  # other data would be refused
    half = load_dataset(dataset).train
    return "" if half is None else content_digest(*half)


def content_digest(*arrays: npt.NDArray[Any]) -> str:
    """SHA-256 of arrays of any shape, such as images [n, C, H, W], with their dtypes and shapes."""
    sha = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        sha.update(canonical([plain.dtype.str, list(plain.shape)]).encode())
        sha.update(plain.reshape(-1).view(np.uint8).data)  # a copy would be as large as the images
    return sha.hexdigest()


@lru_cache(maxsize=4)
def _read(dataset: Dataset, place: Path) -> Images:
    try:
        images = dataset.load(place)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise UnavailableError(f"{dataset.name} could not be read: {error}") from error
    wrong = _why_unlike_record(dataset, images)
    if wrong:
        raise PluginError(f"the data set {dataset.name} {wrong}.")
    found = content_digest(*images.test, images.index)
    if dataset.digest not in ("", found):
        raise UnavailableError(_wrong_digest(dataset, place, found))
    if images.train and dataset.train_digest not in ("", content_digest(*images.train)):
        raise UnavailableError(
            f"the training half of {dataset.name} in {place} is not the official one; delete its "
            "folder there to have it downloaded again."
        )
    for array in (images.index, *images.test, *(images.train or ())):
        array.flags.writeable = False
    return images


def _wrong_digest(dataset: Dataset, place: Path, found: str) -> str:
    """The sentence for a test half with another digest than the declared one."""
    if dataset.local:
        return (
            f"the images of {dataset.name} have the digest {found}, expected {dataset.digest}: "
            "restore the files and settings that had it, or declare the new digest."
        )
    return (
        f"the test half of {dataset.name} in {place} has the digest {found[:12]}, expected "
        f"{dataset.digest[:12]}: these are not the official files; delete them there to have them "
        "downloaded again."
    )


def _why_unlike_record(dataset: Dataset, images: Images) -> str:
    """How the images differ from the record, as the end of a sentence; empty where they fit."""
    if len(images.test.images) != dataset.test_size:
        return f"has {len(images.test.images)} test images; its record declares {dataset.test_size}"
    if images.index.shape != images.test.labels.shape or len(set(images.index.tolist())) != len(
        images.index
    ):
        return "does not give each test image its own position in the official file"
    for split in (images.test, images.train):
        wrong = "" if split is None else _why_unlike_split(dataset, split)
        if wrong:
            return wrong
    return ""


def _why_unlike_split(dataset: Dataset, split: Split) -> str:
    shape = (len(split.labels), *dataset.shape)
    if split.images.dtype != np.uint8 or split.images.shape != shape:
        return (
            f"has images {split.images.dtype} {list(split.images.shape)}; uint8 {list(shape)} was "
            "expected"
        )
    if split.labels.dtype != np.int64 or split.labels.ndim != 1:
        return f"has labels {split.labels.dtype} {list(split.labels.shape)}; int64 [n] was expected"
    if not ((split.labels >= 0) & (split.labels < len(dataset.classes))).all():
        return f"has labels outside 0 to {len(dataset.classes) - 1}"
    return ""

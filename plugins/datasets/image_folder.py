"""A folder of photographs with one subfolder a class, as ImageNet's validation images lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.plugin import Dataset, Images, Split, hookimpl
from plugins.datasets._balanced_order import balanced_order

SIZE = 224
EXAMPLES = 1000


def image_folder(path: Path, size: int = SIZE, examples: int = EXAMPLES) -> Dataset:
    """A data set of the first `examples` images of the fixed order, `size` pixels a side.

    The classes are the subfolders in alphabetical order. The shorter side is scaled to 8/7 of
    `size` and the middle is cut out. There is no training half. FileNotFoundError where `path`
    holds no subfolder with images.
    """
    found = folder_index(path)
    return Dataset(
        name="image-folder",
        classes=tuple(found.classes),
        shape=(3, size, size),
        load=partial(read, path, size, examples),
        test_size=min(examples, len(found.samples)),
        summary=f"{len(found.samples)} images of {len(found.classes)} classes in a folder.",
    )


def read(path: Path, size: int, examples: int, folder: Path | None) -> Images:
    """Decode the first images of the fixed order; `folder` is not needed."""
    from torchvision.transforms import v2  # see listed

    found = folder_index(path)
    middle = v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size)])
    labels = np.asarray(found.targets, dtype=np.int64)
    order = balanced_order(labels, "image-folder")[:examples]
    images = [np.asarray(middle(found.loader(found.samples[i][0]))) for i in order]
    return Images(None, Split(np.stack(images).transpose(0, 3, 1, 2).copy(), labels[order]), order)


def folder_index(path: Path) -> Any:
    """The folder as torchvision lists it; nothing is decoded."""
    from torchvision.datasets import ImageFolder  # seconds of import time that a list does not need

    return ImageFolder(path)


@hookimpl
def bench_datasets() -> Iterator[Dataset]:
    """Offer the folder that BENCH_IMAGE_FOLDER names, if it names one.

    BENCH_IMAGE_SIZE is the side in pixels, BENCH_IMAGE_EXAMPLES how many images are read.
    """
    path = os.environ.get("BENCH_IMAGE_FOLDER")
    if path:
        size = int(os.environ.get("BENCH_IMAGE_SIZE", SIZE))
        yield image_folder(Path(path), size, int(os.environ.get("BENCH_IMAGE_EXAMPLES", EXAMPLES)))

"""An image folder with one subfolder for each class, such as ImageNet's validation images."""

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
    """A data set of the first `examples` images of the fixed order, each of `size` x `size`.

    The classes are the subfolders in alphabetical order. The shorter side is scaled to 8/7 of
    `size` and the centre is cropped. There is no training half. Raises FileNotFoundError where
    `path` has no subfolder with images.
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
    """Decode the first images of the fixed order; the data folder `folder` is not needed."""
    from torchvision.transforms import v2  # imported here, as in folder_index

    found = folder_index(path)
    crop = v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size)])
    labels = np.asarray(found.targets, dtype=np.int64)
    order = balanced_order(labels, "image-folder")[:examples]
    images = [np.asarray(crop(found.loader(found.samples[i][0]))) for i in order]
    return Images(None, Split(np.stack(images).transpose(0, 3, 1, 2).copy(), labels[order]), order)


def folder_index(path: Path) -> Any:
    """The index of the folder by torchvision; no image is decoded."""
    from torchvision.datasets import ImageFolder  # imported here: it takes seconds

    return ImageFolder(path)


@hookimpl
def bench_datasets() -> Iterator[Dataset]:
    """Register the folder that BENCH_IMAGE_FOLDER names, where it is set.

    BENCH_IMAGE_SIZE is the side in pixels, BENCH_IMAGE_EXAMPLES the number of images.
    """
    path = os.environ.get("BENCH_IMAGE_FOLDER")
    if path:
        size = int(os.environ.get("BENCH_IMAGE_SIZE", SIZE))
        yield image_folder(Path(path), size, int(os.environ.get("BENCH_IMAGE_EXAMPLES", EXAMPLES)))

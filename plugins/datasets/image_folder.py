"""An image folder with one subfolder for each class, such as ImageNet's validation images."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.plugin import Dataset, Images, Split, hookimpl
from plugins.datasets._balanced_order import balanced_order
from plugins.datasets._folder_index import FolderIndex, folder_index
from plugins.datasets._image_file import centre_square, read_rgb

NAME = "image-folder"
SIZE = 224
LARGEST_SIZE = 4096
EXAMPLES = 1000
IN_MEMORY = 2**26
"""Of 8-bit images: sets of up to so many bytes are kept in memory."""


def image_folder(
    path: Path, size: int = SIZE, examples: int = EXAMPLES, digest: str = "", name: str = NAME
) -> Dataset:
    """A data set of the first `examples` images of the fixed order, each of `size` x `size`.

    The classes are the subfolders in the order of their names. The shorter side is scaled to 8/7 of
    `size` and the centre is cropped. There is no training half. Images with another digest than
    `digest` are refused, unless it is empty. Raises ValueError where the folder is not in order,
    OSError where it cannot be listed.
    """
    found = folder_index(path)
    return Dataset(
        name=name,
        classes=found.classes,
        shape=(3, size, size),
        load=partial(read, found, size, examples, name),
        test_size=min(examples, len(found.files)),
        digest=digest,
        summary=found.summary,
        local=True,
    )


def read(
    found: FolderIndex, size: int, examples: int, name: str, folder: Path | None = None
) -> Images:
    """Decode the first images of the fixed order; the data folder `folder` is not needed.

    `name`, that of the data set, determines the order. Raises ValueError, which names the file,
    where one cannot be decoded.
    """
    labels = np.asarray(found.labels, dtype=np.int64)
    order = balanced_order(labels, name)[:examples]
    paths = [found.root / found.files[i] for i in order]
    images = _decoded(paths, size)
    return Images(None, Split(images, labels[order]), order)


def _decoded(paths: Sequence[Path], size: int) -> npt.NDArray[np.uint8]:
    """The images [n, 3, size, size]; many of them mapped from a temporary file.

    The file has no name in its folder ($TMPDIR), so that nothing is left of it, and is mapped for
    reading alone.
    """
    shape = (len(paths), 3, size, size)
    if math.prod(shape) <= IN_MEMORY:
        return np.stack([centre_square(path, read_rgb(path), size) for path in paths])
    with tempfile.TemporaryFile(prefix="gauntlet-images-") as file:
        for path in paths:
            file.write(np.ascontiguousarray(centre_square(path, read_rgb(path), size)).data)
        file.flush()
        return np.memmap(file, np.uint8, "r", shape=shape)


def folder_images(root: Path, size: int, examples: int, name: str) -> Images:
    """Read the first images of a folder with one subfolder for each class, [n, 3, size, size].

    `name`, that of the data set, determines the order, which alternates between the classes. There
    is no training half. Raises ValueError where the folder is not in order or an image cannot be
    decoded, with a sentence that names the place, and OSError where the folder cannot be listed.
    """
    return read(folder_index(root), size, examples, name)


@hookimpl
def bench_datasets() -> Iterator[Dataset]:
    """Register the folder that BENCH_IMAGE_FOLDER names, where it is set.

    BENCH_IMAGE_SIZE is the side in pixels, BENCH_IMAGE_EXAMPLES the number of images,
    BENCH_IMAGE_DIGEST the digest that the images must have. A folder or setting that is not in
    order is registered too, with the reason.
    """
    path = os.environ.get("BENCH_IMAGE_FOLDER")
    if not path:
        return
    try:
        size = _number("BENCH_IMAGE_SIZE", SIZE, LARGEST_SIZE)
        examples = _number("BENCH_IMAGE_EXAMPLES", EXAMPLES, 10**9)
        yield image_folder(Path(path).expanduser(), size, examples, _digest())
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error)
        shape = (3, SIZE, SIZE)
        yield Dataset(NAME, (), shape, _no_images, 0, summary=reason, local=True, problem=reason)


def _number(variable: str, default: int, largest: int) -> int:
    text = os.environ.get(variable, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= largest:
        raise ValueError(f"{variable} is {text!r}; set it to a number from 1 to {largest}.")
    return int(text)


def _digest() -> str:
    text = os.environ.get("BENCH_IMAGE_DIGEST", "")
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(
            f"BENCH_IMAGE_DIGEST is {text!r}; set it to the 64 hexadecimal digits that "
            "`bench doctor` prints."
        )
    return text


def _no_images(folder: Path | None) -> Images:
    raise ValueError("the image folder is not in order.")

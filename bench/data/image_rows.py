"""Clean images as rows that become float32 when they are read: memory for one window at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WHOLE_BYTES = 2**28
"""Of float32 images: sets up to this size are one tensor, larger ones are read in windows."""
WINDOW = 64
"""Rows that are read at once; a multiple of it keeps the groups of random defenses whole."""


class ImageRows:
    """Images [n, C, H, W] of 8 bits; indexing gives float32 rows in [0, 1], as copies.

    Args:
        images: [m, C, H, W] uint8, in memory or mapped from a file.
        device: where rows are copied to.
        index: [n] int64, the image of each row; None: the images in their order.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        device: torch.device | str = "cpu",
        index: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.images, self.device = images, torch.device(device)
        self.index = np.arange(len(images)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> torch.Size:
        """[n, C, H, W]."""
        return torch.Size((len(self), *self.images.shape[1:]))

    def __getitem__(self, rows: Any) -> Tensor:
        """The rows as float32; `rows` as for a tensor: a number, a slice or indices [k]."""
        chosen = self.index[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return to_float(torch.tensor(np.asarray(self.images[chosen]), device=self.device))

    def select(self, rows: Tensor) -> ImageRows:
        """The rows `rows` [k] int64, still unread."""
        return ImageRows(self.images, self.device, self.index[rows.cpu().numpy()])


CleanImages: TypeAlias = Tensor | ImageRows
"""Images [n, C, H, W]: a tensor, or rows that are read when they are needed."""


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images [..., C, H, W] to float32 in [0, 1], contiguous in memory."""
    # With one channel two memory layouts count as contiguous, and convolutions differ between them
    # in the last bit; the copy has one fixed layout.
    return images.clone(memory_format=torch.contiguous_format).float() / 255


def clean_images(images: npt.NDArray[np.uint8], device: torch.device | str) -> CleanImages:
    """Images [n, C, H, W] of 8 bits as one tensor; those that are too large for that, as rows."""
    if images.size * torch.float32.itemsize > WHOLE_BYTES:
        return ImageRows(images, device)
    return to_float(torch.tensor(images, device=device))


def selected(images: CleanImages, rows: Tensor) -> CleanImages:
    """The rows `rows` [k] int64 of images [n, C, H, W]."""
    return images.select(rows) if isinstance(images, ImageRows) else images[rows]


def windows(images: CleanImages) -> Iterator[Tensor]:
    """The images in windows of WINDOW rows; a tensor [n, C, H, W] gives one window, itself."""
    if isinstance(images, Tensor):
        yield images
        return
    for first in range(0, len(images), WINDOW):
        yield images[first : first + WINDOW]


def blocks(images: CleanImages, rows: int) -> Iterator[Tensor]:
    """Consecutive blocks of `rows` images of [n, C, H, W]; the last one has what is left."""
    for first in range(0, len(images), rows):
        yield images[first : first + rows]

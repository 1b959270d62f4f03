"""Finds writes into the clean images and labels of the harness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.core.errors import PluginError
from bench.core.outcomes import Chunk
from bench.data.datasets import Examples
from bench.data.image_rows import CleanImages, ImageRows, windows
from bench.engine.query_cache import fingerprints

Rows: TypeAlias = npt.NDArray[np.int64]


class PixelGuard:
    """Loads clean images, and compares them with the fingerprints they had when they were loaded.

    Plugins get copies, so only code that looks for the harness's own tensors can change them.

    Args:
        examples: the images and labels.
        device: where they are loaded.
    """

    def __init__(self, examples: Examples, device: torch.device) -> None:
        self.examples = examples
        self.images = examples.rows(device)
        """[n, C, H, W] clean images; of large sets rows, which are read and checked in windows."""
        self.labels = torch.tensor(examples.labels, device=device)
        """[n] labels."""
        self.known = _all_fingerprints(self.images)
        self.known_labels = self.labels.clone()

    def check(self, suspects: str, rows: Rows | None = None) -> None:
        """Checks that no image and no label has changed; those of a tensor are loaded again.

        Args:
            suspects: the plugins that ran since the last check, for the message.
            rows: [k] int64, the images to check; None: all.

        Raises:
            PluginError: one has changed.
        """
        images, labels = self._changed(rows), self.labels != self.known_labels
        if images.any() or labels.any():
            if isinstance(self.images, Tensor):
                self.images.copy_(self.examples.tensor(self.images.device))
            self.labels.copy_(self.known_labels)
            count, what = (images, "clean images") if images.any() else (labels, "labels")
            raise PluginError(
                f"{suspects} changed {int(count.sum())} of {len(count)} {what} of the harness, so "
                "nothing is recorded; a plugin may write into the tensors that it is given only."
            )

    def _changed(self, rows: Rows | None) -> Tensor:
        """[n] or [k] bool: images that have other fingerprints than when they were loaded."""
        if rows is None:
            return _all_fingerprints(self.images) != self.known
        where = torch.from_numpy(rows).to(self.known.device)
        return fingerprints(self.images[where]) != self.known[where]

    def checked(
        self, chunks: Iterator[Chunk], judged: tuple[CleanImages, Tensor, Tensor], suspects: str
    ) -> Iterator[Chunk]:
        """The chunks of a cell, each after a check, with one more check at the end.

        Of images that are read in windows, those of the chunk are checked, at the end all.

        Args:
            chunks: the outcomes of the cell.
            judged: the images [n, C, H, W], labels [n] and targets [n] of its referee.
            suspects: the plugins that run, for the message.

        Raises:
            PluginError: an image or label has changed; the chunk is not yielded.
        """
        images, *others = judged
        copies = [images, *others] if isinstance(images, Tensor) else others
        known = [_fingerprint(tensor) for tensor in copies]
        for chunk in chunks:
            rows = images.index[chunk.outcomes.item] if isinstance(images, ImageRows) else None
            self._check_judged(copies, known, suspects, rows)
            yield chunk
        self._check_judged(copies, known, suspects, None)

    def _check_judged(
        self, copies: list[Tensor], known: list[Tensor], suspects: str, rows: Rows | None
    ) -> None:
        self.check(suspects, rows)
        if not all(map(torch.equal, map(_fingerprint, copies), known)):
            raise PluginError(
                f"{suspects} changed the clean images or labels of the referee, so nothing is "
                "recorded; a plugin may write into the tensors that it is given only."
            )


def _all_fingerprints(images: CleanImages) -> Tensor:
    """The fingerprints [n] of images [n, C, H, W]."""
    return torch.cat([fingerprints(part) for part in windows(images)])


def _fingerprint(tensor: Tensor) -> Tensor:
    """The fingerprints [n] of images [n, C, H, W]; a copy of labels [n]."""
    return fingerprints(tensor) if tensor.is_floating_point() else tensor.clone()

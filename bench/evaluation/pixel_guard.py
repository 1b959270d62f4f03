"""Finds writes into the clean images and labels of the harness."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.core.errors import PluginError
from bench.core.outcomes import Chunk
from bench.data.datasets import Examples
from bench.engine.query_cache import fingerprints


class PixelGuard:
    """Loads clean images, and compares them with the fingerprints they had when they were loaded.

    Plugins get copies, so only code that looks for the harness's own tensors can change them.

    Args:
        examples: the images and labels.
        device: where they are loaded.
    """

    def __init__(self, examples: Examples, device: torch.device) -> None:
        self.examples = examples
        self.images = examples.tensor(device)
        """[n, C, H, W] clean images."""
        self.labels = torch.tensor(examples.labels, device=device)
        """[n] labels."""
        self.known = fingerprints(self.images)
        self.known_labels = self.labels.clone()

    def check(self, suspects: str) -> None:
        """Checks that no image and no label has changed; those that have are loaded again.

        Args:
            suspects: the plugins that ran since the last check, for the message.

        Raises:
            PluginError: one has changed.
        """
        images, labels = fingerprints(self.images) != self.known, self.labels != self.known_labels
        if images.any() or labels.any():
            self.images.copy_(self.examples.tensor(self.images.device))
            self.labels.copy_(self.known_labels)
            count, what = (images, "clean images") if images.any() else (labels, "labels")
            raise PluginError(
                f"{suspects} changed {int(count.sum())} of {len(count)} {what} of the harness, so "
                "nothing is recorded; a plugin may write into the tensors that it is given only."
            )

    def checked(
        self, chunks: Iterator[Chunk], judged: tuple[Tensor, ...], suspects: str
    ) -> Iterator[Chunk]:
        """The chunks of a cell, each after a check, with one more check at the end.

        Args:
            chunks: the outcomes of the cell.
            judged: copies [n, ...] of images and labels on which its referee judges.
            suspects: the plugins that run, for the message.

        Raises:
            PluginError: an image or label has changed; the chunk is not yielded.
        """
        known = [_fingerprint(tensor) for tensor in judged]
        for chunk in chunks:
            self._check_judged(judged, known, suspects)
            yield chunk
        self._check_judged(judged, known, suspects)

    def _check_judged(self, judged: tuple[Tensor, ...], known: list[Tensor], suspects: str) -> None:
        self.check(suspects)
        if not all(map(torch.equal, map(_fingerprint, judged), known)):
            raise PluginError(
                f"{suspects} changed the clean images or labels of the referee, so nothing is "
                "recorded; a plugin may write into the tensors that it is given only."
            )


def _fingerprint(tensor: Tensor) -> Tensor:
    """The fingerprints [n] of images [n, C, H, W]; a copy of labels [n]."""
    return fingerprints(tensor) if tensor.is_floating_point() else tensor.clone()

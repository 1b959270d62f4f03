"""Outcomes of a cell: verdicts, counts and kept images, as arrays with one entry per item."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt


class Verdict(IntEnum):
    """What the referee found for one attempt."""

    ROBUST = 0
    BROKEN = 1
    OUT_OF_BALL = 2
    OUT_OF_BOX = 3
    NOT_FINITE = 4


NO_ANSWER = -1
"""The label of an image that got no finite answer."""


REJECTED = -2
"""The label of an image that a defense refused to classify."""


class Outcomes(NamedTuple):
    """What the referee found and what it cost: parallel arrays, one entry an item."""

    item: npt.NDArray[np.int32]
    verdict: npt.NDArray[np.uint8]
    """Codes of `Verdict`."""
    eight_bit: npt.NDArray[np.bool_]
    """Still broken after rounding each pixel to k/255 towards the clean one."""
    fragile: npt.NDArray[np.bool_]
    """Broken by a margin under 1e-4 of the logit scale."""
    distance: npt.NDArray[np.float64]
    """From the clean image, in the norm of the perturbation set."""
    label: npt.NDArray[np.int16]
    """What the referee's fresh defense answered, rejected or not; -1 where it gave no finite
    answer."""
    confidence: npt.NDArray[np.float32]
    """Softmax of that answer."""
    forwards: npt.NDArray[np.int32]
    """Forward passes the attack asked for, up to its first success."""
    gradients: npt.NDArray[np.int32]
    looks: npt.NDArray[np.int32]
    """Forwards the harness added: one for each run's last iterate."""
    step: npt.NDArray[np.int32]
    """Steps done before the first success (queries, in a run of its own); -1 where it held."""
    run: npt.NDArray[np.int32]
    """The restart or target of the first success; -1 where the item held."""
    rejection: npt.NDArray[np.float32]
    """The rejection score of the judged image less its threshold: rejected where positive. -inf
    where there is none: the defense never rejects, or the referee refused the image."""

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        """Join chunks, in item order."""
        if not parts:
            return cls._make(np.zeros(0, dtype=kind) for kind in OUTCOME_DTYPES)
        joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        return cls._make(column[order] for column in joined)

    def survivors(self) -> list[int]:
        """The items that were not broken, in order."""
        held: list[int] = self.item[self.verdict != Verdict.BROKEN].tolist()
        return held


OUTCOME_DTYPES = (
    np.int32, np.uint8, np.bool_, np.bool_, np.float64, np.int16,
    np.float32, np.int32, np.int32, np.int32, np.int32, np.int32, np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class KeptImage:
    """One adversarial image for the pages, with its original."""

    item: int
    original: npt.NDArray[np.uint8]
    """[C, H, W]."""
    adversarial: npt.NDArray[np.float32]
    """[C, H, W] in [0, 1]."""
    true_label: int
    clean_label: int
    clean_confidence: float
    label: int
    confidence: float


@dataclass(frozen=True)
class Chunk:
    """What is committed at once: finished items, and the images kept of them."""

    outcomes: Outcomes
    seconds: float
    """CPU seconds since the chunk before."""
    images: tuple[KeptImage, ...] = ()
    exact: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None = None
    """Items and their images [n, C, H, W] where every image is kept."""

    def without(self, items: Collection[int]) -> Chunk:
        """The same without these items; its seconds stay, for they were spent."""
        kept = ~np.isin(self.outcomes.item, list(items))
        exact = self.exact
        return Chunk(
            Outcomes._make(column[kept] for column in self.outcomes),
            self.seconds,
            tuple(image for image in self.images if image.item not in items),
            None if exact is None else (exact[0][kept], exact[1][kept]),
        )

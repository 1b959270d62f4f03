"""Outcomes of a cell: verdicts, counts and kept images, as arrays with one entry per item."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from bench.core.machines import Machine


class Verdict(IntEnum):
    """The referee's verdict on one item."""

    ROBUST = 0
    BROKEN = 1
    OUT_OF_BALL = 2
    OUT_OF_BOX = 3
    NOT_FINITE = 4


NO_ANSWER = -1
"""The label of an image with NaN or infinite logits."""


REJECTED = -2
"""The label of an image that a defense rejected."""


TRUE_GRADIENT_RESTART = 1000
"""Added to the restart of a success by the true gradient of a defense that declares BPDA."""


class Outcomes(NamedTuple):
    """Verdicts and costs as parallel arrays [n], one entry per item."""

    item: npt.NDArray[np.int32]
    verdict: npt.NDArray[np.uint8]
    """Codes of `Verdict`."""
    eight_bit: npt.NDArray[np.bool_]
    """Whether it is still broken after rounding each pixel to k/255 towards the clean one."""
    fragile: npt.NDArray[np.bool_]
    """Whether it is broken by a margin under 1e-4 of the logit scale."""
    distance: npt.NDArray[np.float64]
    """From the clean image, in the norm of the perturbation set."""
    label: npt.NDArray[np.int16]
    """The class predicted by the referee's fresh model, rejected or not; -1 for logits that are
    not finite."""
    confidence: npt.NDArray[np.float32]
    """Softmax of that class."""
    forwards: npt.NDArray[np.int32]
    """Queries of the attack up to its first success."""
    gradients: npt.NDArray[np.int32]
    """Gradient evaluations of the attack up to its first success."""
    final_checks: npt.NDArray[np.int32]
    """Forward passes of the harness: one for the last iterate of each restart."""
    step: npt.NDArray[np.int32]
    """Steps (of an external attack: queries) before the first success; -1 where unbroken."""
    restart: npt.NDArray[np.int32]
    """The restart or target of the first success, plus TRUE_GRADIENT_RESTART where the
    approximation that the defense declares had failed in all restarts; -1 where unbroken."""
    rejection: npt.NDArray[np.float32]
    """Rejection score less its threshold: rejected where positive. -inf where there is none: the
    defense never rejects, or the referee refused the candidate."""
    target: npt.NDArray[np.int16]
    """The declared target class; -1 under an untargeted goal, and in outcomes of older versions."""
    claimed: npt.NDArray[np.int8]
    """1 where the engine had seen the goal reached before the referee's verdict, 0 where not, -1 in
    outcomes of older versions."""
    true_confidence: npt.NDArray[np.float32]
    """Softmax of the true class, 0 for logits that are not finite; NaN where the candidate was
    refused or lies outside the perturbation set, and in outcomes of older versions."""
    true_rank: npt.NDArray[np.int16]
    """Number of classes that score above the true class, all for logits that are not finite; -1
    where `true_confidence` is NaN."""
    loss: npt.NDArray[np.float32]
    """Cross-entropy of the true class; NaN also for logits that are not finite."""
    share: npt.NDArray[np.float32]
    """Share of the referee's draws of a nuisance on which the goal is reached; -1 where the threat
    model declares none, the candidate was refused, and in outcomes of older versions."""

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        """The outcomes of all parts, in item order."""
        if not parts:
            return cls._make(np.zeros(0, dtype=kind) for kind in OUTCOME_DTYPES)
        joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        return cls._make(column[order] for column in joined)

    def survivors(self) -> list[int]:
        """The unbroken items, in order."""
        unbroken: list[int] = self.item[self.verdict != Verdict.BROKEN].tolist()
        return unbroken


OUTCOME_DTYPES = (
    np.int32, np.uint8, np.bool_, np.bool_, np.float64, np.int16,
    np.float32, np.int32, np.int32, np.int32, np.int32, np.int32, np.float32,
    np.int16, np.int8, np.float32, np.int16, np.float32, np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Refusals:
    """The candidates of a cell that the referee refused, by reason."""

    norm: int
    """Outside the perturbation set; of a shared point, also another point than that one."""
    box: int
    """A pixel outside [0, 1]."""
    not_finite: int
    """A NaN or infinite pixel."""
    not_adversarial: int | None
    """Claimed as a success, which the fresh model does not confirm; None where outcomes of an older
    version do not say what was claimed."""

    @property
    def total(self) -> int:
        """All refused candidates."""
        return self.norm + self.box + self.not_finite + (self.not_adversarial or 0)


def refusals(outcomes: Outcomes) -> Refusals:
    """The refused candidates among outcomes [n], by reason."""
    count = np.bincount(outcomes.verdict, minlength=len(Verdict))
    unconfirmed = (outcomes.claimed == 1) & (outcomes.verdict == Verdict.ROBUST)
    return Refusals(
        norm=int(count[Verdict.OUT_OF_BALL]),
        box=int(count[Verdict.OUT_OF_BOX]),
        not_finite=int(count[Verdict.NOT_FINITE]),
        not_adversarial=None if (outcomes.claimed < 0).any() else int(unconfirmed.sum()),
    )


@dataclass(frozen=True)
class KeptImage:
    """One adversarial image for the leaderboard, with its original."""

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
    """Finished items with their images, committed in one transaction."""

    outcomes: Outcomes
    seconds: float
    """CPU seconds since the previous chunk."""
    images: tuple[KeptImage, ...] = ()
    exact: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None = None
    """Items [n] and their images [n, C, H, W], where every image is kept."""
    machine: Machine | None = None
    """The machine that computed it; None where it is not known."""
    points: npt.NDArray[np.float32] | None = None
    """The points [n, ...] of a parametric perturbation set; None in a norm ball, and where all
    examples share one point, which is stored once."""

    def without(self, items: Collection[int]) -> Chunk:
        """The chunk without these items; its seconds stay."""
        kept = ~np.isin(self.outcomes.item, list(items))
        exact = self.exact
        return Chunk(
            Outcomes._make(column[kept] for column in self.outcomes),
            self.seconds,
            tuple(image for image in self.images if image.item not in items),
            None if exact is None else (exact[0][kept], exact[1][kept]),
            self.machine,
            None if self.points is None else self.points[kept],
        )

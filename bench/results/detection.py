"""Detection: how a rejecting defense separates attacked images from clean ones.

An *attacked* image is the candidate that an attack handed to the referee: its first success against
classifier and detector together, else its last iterate. Unchanged images and candidates that the
referee refused are excluded. An attack stops at its first success, so the rejected share is not the
detection rate of an attack that ignores the detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.outcomes import Outcomes, Verdict
from bench.core.statistics import Count, count_interval, roc

_Floats = npt.NDArray[np.float64]
_Bits = npt.NDArray[np.bool_]


class RejectionScores(NamedTuple):
    """Images that a rejecting defense classified, [m] each; empty where it never rejects."""

    score: _Floats
    """Rejection score less its threshold: rejected where positive."""
    wrong: _Bits
    """Classified wrongly, rejected or not."""
    broken: _Bits
    """The goal of the threat model was reached and the image accepted."""


@dataclass(frozen=True)
class Detection:
    """The detector against one attack; each count is over the attacked images."""

    auc: float
    """Probability that an attacked image scores above a clean one; ties count half."""
    rejected: Count
    """At the threshold of the defense: the true-positive rate."""
    fooled: Count
    """Classified wrongly, rejected or not."""
    passed: Count
    """Reached the goal of the threat model and were accepted."""


@dataclass(frozen=True)
class DetectorRoc:
    """Shares rejected as the threshold falls: two rising arrays from 0 to 1."""

    clean: _Floats
    """Of clean images: the false-positive rate."""
    attacked: _Floats
    """Of attacked images: the true-positive rate."""
    at: tuple[float, float]
    """Both at the threshold of the defense."""


@dataclass(frozen=True)
class Rejection:
    """The rejection of clean images by a rejecting defense."""

    declared: float
    """The share of calibration images that its threshold was set to reject."""
    clean: Count
    """Rejected clean examples."""


def rejection_scores(
    outcomes: Outcomes, truth: npt.NDArray[np.int16], *, clean: bool = False
) -> RejectionScores:
    """The images [m] with a rejection score; of an attack only those that it changed.

    `truth` is the true label [n] of each outcome.
    """
    known = np.isfinite(outcomes.rejection) & (clean | (outcomes.distance > 0))
    return RejectionScores(
        score=outcomes.rejection[known].astype(np.float64),
        wrong=(outcomes.label != truth)[known],
        broken=(outcomes.verdict == Verdict.BROKEN)[known],
    )


def detector_counts(clean: RejectionScores, attacked: RejectionScores) -> Detection | None:
    """The counts of one attack; None where clean or attacked images have no scores."""
    if not len(clean.score) or not len(attacked.score):
        return None
    return Detection(
        auc=roc(clean.score, attacked.score).area,
        rejected=_count(attacked.score > 0),
        fooled=_count(attacked.wrong),
        passed=_count(attacked.broken),
    )


def roc_curve(clean: RejectionScores, attacked: RejectionScores) -> DetectorRoc | None:
    """The ROC of one attack; None where clean or attacked images have no scores."""
    if not len(clean.score) or not len(attacked.score):
        return None
    here = float((clean.score > 0).mean()), float((attacked.score > 0).mean())
    found = roc(clean.score, attacked.score)
    return DetectorRoc(found.negative, found.positive, here)


def rejection(declared: float | None, clean: RejectionScores) -> Rejection | None:
    """The rejection of clean images; None without a detector or a clean pass."""
    if declared is None or not len(clean.score):
        return None
    return Rejection(float(declared), _count(clean.score > 0))


def _count(flags: _Bits) -> Count:
    return count_interval(int(flags.sum()), len(flags))

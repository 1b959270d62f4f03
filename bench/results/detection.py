"""How a rejecting defense tells attacked images from clean ones, and what gets past it.

An *attacked* image is what an attack brought to the referee: its first success against classifier
and detector together, else its last iterate. Images left as they were, and those the referee
refused, are none. So a curve speaks of what is left of an attack that stops as soon as it gets
through; its rejected share is no detection rate of an attack that never looks at the detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.outcomes import Outcomes, Verdict
from bench.core.statistics import Count, count_interval, roc

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]


class Scored(NamedTuple):
    """Images that a rejecting defense was shown: [m] each; of no image where it never rejects."""

    score: Floats
    """Rejection score less its threshold: rejected where positive."""
    wrong: Bits
    """Another class than the true one was named, rejected or not."""
    broken: Bits
    """The goal of the board was reached, and the image accepted."""


@dataclass(frozen=True)
class Detection:
    """The detector before one attack; each count is of the attacked images."""

    auc: float
    """The chance that an attacked image scores above a clean one; ties count half."""
    rejected: Count
    """At the threshold that the defense has: its true-positive rate."""
    fooled: Count
    """Named another class, rejected or not."""
    passed: Count
    """Reached the goal of the board and were accepted: fooled and unflagged."""


@dataclass(frozen=True)
class Roc:
    """Shares rejected as the threshold falls: two rising arrays from 0 to 1."""

    clean: Floats
    """Of clean images: the false-positive rate."""
    attacked: Floats
    """Of attacked images: the true-positive rate."""
    at: tuple[float, float]
    """Both at the threshold that the defense has."""


@dataclass(frozen=True)
class Rejection:
    """What a rejecting defense does to clean images."""

    declared: float
    """The share that its threshold was set to reject, on calibration images."""
    clean: Count
    """Rejected of the clean examples here."""


def scored(made: Outcomes, truth: npt.NDArray[np.int16], *, clean: bool = False) -> Scored:
    """The images with a score; of an attack only those that it changed."""
    known = np.isfinite(made.rejection) & (clean | (made.distance > 0))
    return Scored(
        score=made.rejection[known].astype(np.float64),
        wrong=(made.label != truth)[known],
        broken=(made.verdict == Verdict.BROKEN)[known],
    )


def detection(clean: Scored, attacked: Scored) -> Detection | None:
    """The figures of one attack; None where there are no scores on either side."""
    if not len(clean.score) or not len(attacked.score):
        return None
    return Detection(
        auc=roc(clean.score, attacked.score).area,
        rejected=_count(attacked.score > 0),
        fooled=_count(attacked.wrong),
        passed=_count(attacked.broken),
    )


def curve(clean: Scored, attacked: Scored) -> Roc | None:
    """The ROC of one attack; None where there are no scores on either side."""
    if not len(clean.score) or not len(attacked.score):
        return None
    here = float((clean.score > 0).mean()), float((attacked.score > 0).mean())
    found = roc(clean.score, attacked.score)
    return Roc(found.negative, found.positive, here)


def rejection(declared: float | None, clean: Scored) -> Rejection | None:
    """What it does to clean images; None where it never rejects or the clean pass is missing."""
    if declared is None or not len(clean.score):
        return None
    return Rejection(float(declared), _count(clean.score > 0))


def _count(flags: Bits) -> Count:
    return count_interval(int(flags.sum()), len(flags))

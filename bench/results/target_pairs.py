"""Pairs of true class and target class that an attack tried, and those that it reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.outcomes import Outcomes, Verdict

Codes = npt.NDArray[np.int64]
"""Codes of (example, class) pairs, example * K + class, each once and rising."""


class TargetPairs(NamedTuple):
    """The (example, class) pairs of one attack."""

    attempted: Codes
    """[a]: pairs with the class as the declared target; empty under an untargeted goal."""
    reached: Codes
    """[r]: pairs with a verified adversarial example that the defense assigns to the class."""


def target_pairs(
    made: Outcomes,
    example: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int16],
    classes: int,
    goal: Mapping[str, str],
) -> TargetPairs:
    """The pairs of outcomes [m] of the examples [m], whose true classes are `labels` [n].

    Outcomes of older versions do not record the target; it follows from the item under the goal
    rules `next` and `all`, and is not known under the others.
    """
    broken = made.verdict == Verdict.BROKEN
    if goal["kind"] != "targeted":
        hit = broken & (made.label >= 0)
        return TargetPairs(np.zeros(0, np.int64), _codes(example[hit], made.label[hit], classes))
    target = _targets(made, labels[example].astype(np.int64), classes, goal["rule"])
    known = target >= 0
    hit = broken & known
    return TargetPairs(
        _codes(example[known], target[known], classes), _codes(example[hit], target[hit], classes)
    )


def _codes(example: npt.NDArray[np.integer], label: npt.NDArray[np.integer], classes: int) -> Codes:
    return np.unique(example.astype(np.int64) * classes + label.astype(np.int64))


def _targets(made: Outcomes, truth: Codes, classes: int, rule: str) -> Codes:
    target = made.target.astype(np.int64)
    if rule not in ("next", "all"):
        return target
    shift = made.item % (classes - 1) if rule == "all" else 0
    return np.where(target < 0, (truth + 1 + shift) % classes, target)


def joined(parts: Iterable[TargetPairs]) -> TargetPairs:
    """The pairs of all parts, each once."""
    attempted, reached = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in parts:
        attempted.append(part.attempted)
        reached.append(part.reached)
    return TargetPairs(np.unique(np.concatenate(attempted)), np.unique(np.concatenate(reached)))

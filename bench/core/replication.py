"""Two evaluations of one cell: which items differ, and by which margins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core.errors import BenchError
from bench.core.machines import Machine
from bench.core.outcomes import Outcomes, Verdict


@dataclass(frozen=True)
class Replication:
    """A second evaluation of a cell, stored beside the first."""

    cell: str
    """Key of the cell."""
    machine: Machine
    digest: str
    """SHA-256 of the packed outcomes."""
    at: float
    """Unix time."""
    differ: int
    """Items whose verdict differs from that of the first evaluation."""


@dataclass(frozen=True)
class Judged:
    """The referee's verdict on one item in one of the evaluations."""

    verdict: str
    label: int
    """The predicted class; -1 for logits that are not finite."""
    margin: float | None
    """Largest logit of another class less that of the true class, positive where the prediction is
    wrong. Where it is right the value is an upper bound. None where the candidate was refused."""
    distance: float

    @property
    def text(self) -> str:
        """The verdict with its margin."""
        if self.margin is None:
            return self.verdict
        bound = " or less" if self.margin < 0 else ""
        return f"{self.verdict} (class {self.label}, margin {self.margin:.3g}{bound})"


@dataclass(frozen=True)
class Difference:
    """An item on which two evaluations of a cell disagree."""

    item: int
    first: Judged
    second: Judged

    @property
    def sentence(self) -> str:
        """Both verdicts on one line."""
        return f"item {self.item}: {self.first.text} at first, now {self.second.text}."


def differences(first: Outcomes, second: Outcomes) -> list[Difference]:
    """The items whose verdicts differ, in item order.

    Raises BenchError where the evaluations are not of the same items.
    """
    require_same_items(first, second)
    margins = judged_margins(first), judged_margins(second)
    return [
        Difference(
            int(first.item[row]),
            _judged(first, margins[0], row),
            _judged(second, margins[1], row),
        )
        for row in np.flatnonzero(first.verdict != second.verdict).tolist()
    ]


def changed_otherwise(first: Outcomes, second: Outcomes) -> int:
    """Number of items with the same verdict and any other column that differs."""
    same = first.verdict == second.verdict
    return int((same & (_bytes(first) != _bytes(second)).any(1)).sum())


def require_same_items(first: Outcomes, second: Outcomes) -> None:
    """Raise BenchError where two evaluations are not of the same items."""
    if first.item.tolist() != second.item.tolist():
        raise BenchError(
            f"the second evaluation has {len(second.item)} outcomes, which are not of the"
            f" {len(first.item)} items of the first: evaluate the same items."
        )


def judged_margins(outcomes: Outcomes) -> npt.NDArray[np.float64]:
    """`Judged.margin` of each item [n], NaN where the candidate was refused.

    With p the softmax of the true class and q that of the predicted one it is log q - log p where
    the prediction is wrong. Where it is right only p is stored, and log(1 - p) - log p is the
    margin of all other classes together.
    """
    loss = outcomes.loss.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        wrong = np.log(outcomes.confidence.astype(np.float64)) + loss
        right = np.log(np.expm1(loss))
    found = np.where(outcomes.true_rank > 0, wrong, right)
    return np.where(outcomes.true_rank < 0, np.nan, found)


def _bytes(outcomes: Outcomes) -> npt.NDArray[np.uint8]:
    """The bytes of each item's outcome, [n, bytes]: NaN equals NaN in them."""
    columns = [np.ascontiguousarray(column) for column in outcomes]
    parts = [c.view(np.uint8).reshape(len(c), c.dtype.itemsize) for c in columns]
    return np.concatenate(parts, axis=1)


def _judged(outcomes: Outcomes, margins: npt.NDArray[np.float64], row: int) -> Judged:
    value = float(margins[row])
    return Judged(
        verdict=Verdict(int(outcomes.verdict[row])).name.lower().replace("_", " "),
        label=int(outcomes.label[row]),
        margin=value if np.isfinite(value) else None,
        distance=float(outcomes.distance[row]),
    )

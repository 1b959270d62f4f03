"""What the store is given and what it answers: frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.cells import Cell, CellState, Culprit
from bench.core.errors import BenchError


class LeaseLostError(BenchError):
    """Somebody else holds the cell now; nothing of this attempt was written."""


@dataclass(frozen=True)
class Lease:
    """The right to write one cell or task, as long as owner and fence still match."""

    key: str
    owner: str
    fence: int
    """Rises with every lease of the key: a forgotten worker can never write again."""
    task: bool = False


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the matrix, to be played or with the reason why not."""

    cell: Cell
    state: CellState = CellState.MISSING
    """`missing`, `skipped` or `not applicable`."""
    reason: str = ""
    required: bool = False
    tier: str = "in-process"
    """How far a stranger's code is locked in."""


@dataclass(frozen=True)
class CellRow:
    """One cell with its state. Figures are None until the cell is done."""

    cell: Cell
    """As it was planned."""
    key: str
    state: CellState
    reason: str
    """Why the cell has no figure; empty where it has one."""
    culprit: Culprit | None
    required: bool
    tier: str
    items_done: int
    robust: int | None
    """Items that no verified adversarial example of this attack broke, refused ones included."""
    out_of_ball: int | None
    """Items whose candidate the referee refused: outside the set or the box, or not finite."""
    fragile: int | None
    """Broken items whose margin is under 1e-4 of the logit scale."""
    broken_8bit: int | None
    """Items still broken after rounding to 8 bits."""
    forwards: int | None
    gradients: int | None
    looks: int | None
    """Forward passes of the harness's own final checks."""
    seconds: float
    """CPU seconds so far."""
    max_distance: float | None
    """Largest distance among broken items, in the norm of the set; None where none broke."""
    updated: float
    """Unix time of the last change."""
    owner: str


@dataclass(frozen=True)
class ExamplesRow:
    """One set of examples, without its images."""

    digest: str
    dataset: str
    n: int
    labels: npt.NDArray[np.int16]
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    """[C, H, W]."""


class EvidenceRow(NamedTuple):
    """What one diagnostic found."""

    diagnostic: str
    finding: str
    sentence: str
    source: str
    """Digest of the diagnostic's source when it was asked."""


class CertificateRow(NamedTuple):
    """For which examples of a defense a certifier has a proof."""

    defense: str
    defense_digest: str
    certifier: str
    certifier_digest: str
    """Of its source when it was asked."""
    exact: bool
    """True where the proof holds with certainty, False where it is statistical."""
    certified: npt.NDArray[np.bool_]


class SubmissionStep(NamedTuple):
    """One change of a submission's state."""

    state: str
    reason: str
    at: float
    """Unix time."""


class SubmissionRow(NamedTuple):
    """A submission's newest state, and how it came there."""

    name: str
    state: str
    reason: str
    at: float
    history: tuple[SubmissionStep, ...]
    """Oldest first, the newest state included."""

"""Frozen records that the store takes and returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.core.cells import BALANCED_ORDER, Cell, CellState, Culprit
from bench.core.errors import BenchError


class LeaseLostError(BenchError):
    """Raised where another worker holds the lease; nothing was written."""


@dataclass(frozen=True)
class Lease:
    """The right to write one cell or task, as long as owner and fence still match."""

    key: str
    owner: str
    fence: int
    """Rises with every lease of the key, so that a worker with an expired lease cannot write."""
    task: bool = False
    attempt: int = 1
    """Number of this attempt since the last outcome was committed, from 1."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the matrix, to be evaluated or with the reason why not."""

    cell: Cell
    state: CellState = CellState.MISSING
    """`missing`, `skipped` or `not applicable`."""
    reason: str = ""
    required: bool = False
    tier: str = "in-process"
    """Isolation of the plugins' code."""


@dataclass(frozen=True)
class CellFigures:
    """The figures of a finished cell, each over all its items."""

    robust: int
    """Items that no verified adversarial example broke; refused candidates count as unbroken."""
    refused: int
    """Items whose candidate is outside the set or the box, or not finite."""
    fragile: int
    """Broken items whose margin is under 1e-4 of the logit scale."""
    broken_8bit: int
    """Items still broken after rounding to 8 bits."""
    forwards: int
    """Queries of the attack."""
    gradients: int
    """Gradient evaluations of the attack."""
    looks: int
    """Forward passes of the harness's own final checks."""
    max_distance: float | None
    """Largest distance among broken items, in the norm of the set; None where none broke."""

    def stored(self) -> dict[str, float | None]:
        """The figures by the names of their database columns, which the seal digests."""
        return {FIGURE_COLUMNS.get(name, name): value for name, value in asdict(self).items()}


FIGURE_COLUMNS = {"refused": "out_of_ball"}
"""Figure -> database column, where their names differ: the first revision named it so."""


@dataclass(frozen=True)
class CellRow:
    """One cell with its state."""

    cell: Cell
    """As it was planned."""
    key: str
    state: CellState
    reason: str
    """Why the cell has no figures; empty where it has them."""
    culprit: Culprit | None
    required: bool
    tier: str
    items_done: int
    figures: CellFigures | None
    """None until the cell is done."""
    seconds: float
    """CPU seconds so far."""
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
    order: str = BALANCED_ORDER
    """Which images of the data set they are: one of EXAMPLE_ORDERS."""


class EvidenceRow(NamedTuple):
    """The finding of one diagnostic."""

    diagnostic: str
    finding: str
    sentence: str
    source: str
    """Digest of the diagnostic's source when it ran."""


class CertificateRow(NamedTuple):
    """The examples of a defense that a certifier certified."""

    defense: str
    defense_digest: str
    certifier: str
    certifier_digest: str
    """Digest of the certifier's source when it ran."""
    exact: bool
    """Whether every example without a certificate can be broken."""
    certified: npt.NDArray[np.bool_]
    """[n]."""


class WeightsRow(NamedTuple):
    """The trained weights of one recipe."""

    recipe: str
    """Digest of all that decides the weights, apart from roundings."""
    digest: str
    """SHA-256 of the content."""
    machine: str
    """The machine class that trained them, as JSON; empty where it is not known."""
    record: str
    """Figures of the training, as JSON."""
    content: bytes
    """A safetensors file."""


class SubmissionStep(NamedTuple):
    """One change of a submission's state."""

    state: str
    reason: str
    at: float
    """Unix time."""


class SubmissionRow(NamedTuple):
    """A submission's newest state, with its history."""

    name: str
    state: str
    reason: str
    at: float
    history: tuple[SubmissionStep, ...]
    """Oldest first, the newest state included."""

"""The point that an attack has fitted to the training half, and what that has cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core.machines import Machine


@dataclass(frozen=True)
class FittedPoint:
    """One point for all examples of a cell, with the cost of fitting it."""

    point: npt.NDArray[np.float32]
    """[1, ...]: of the perturbation set."""
    training: str
    """Digest of the training half that it was fitted to."""
    forwards: int
    """Queries of the attack while it fitted the point, over all training images."""
    gradients: int
    """Gradient evaluations, over all training images."""
    seconds: float
    """CPU seconds."""
    machine: Machine | None = None
    """The machine that computed it; None where it is not known."""

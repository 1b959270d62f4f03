"""Attacker access and query budget."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Access(IntEnum):
    """The attacker's access to the defense. Each level includes the ones below it."""

    NOTHING = 0
    """No queries."""
    LABELS = 1
    """Predicted labels (decision-based attacks)."""
    SCORES = 2
    """Logits (score-based attacks)."""
    GRADIENTS = 3
    """Logits and their gradients (white box)."""


@dataclass(frozen=True)
class Budget:
    """The attacker's budget per example; None: no limit."""

    gradients: int | None = None
    """Gradient evaluations."""
    queries: int | None = None
    """Queries, including those with a gradient."""

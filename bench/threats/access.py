"""Attacker access and query budget."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Access(IntEnum):
    """What the attacker may ask of the defense. Each level contains the ones below it."""

    NOTHING = 0
    LABELS = 1
    SCORES = 2
    GRADIENTS = 3


@dataclass(frozen=True)
class Budget:
    """What the attacker may spend on one example; None is without limit."""

    gradients: int | None = None
    queries: int | None = None
    """Forward passes of the attack, those that carry a gradient included."""

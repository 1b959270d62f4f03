"""A registered plugin object, with its origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Registration(Generic[T]):
    """One thing that a plugin offered, with where it came from."""

    value: T
    origin: str
    """`built-in`, `entry-point` or `submission`."""
    module: str
    source: str
    """SHA-256 of the plugin's module file, and of the plugin modules it imports."""
    folder: Path | None = None
    """A submission's folder; weights lie beside the code."""
    tier: str = "in-process"
    """How far its code is locked in."""

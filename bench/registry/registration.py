"""One registered value of a plugin, with its origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bench.core.isolation import Isolation

Value = TypeVar("Value")


@dataclass(frozen=True)
class Registration(Generic[Value]):
    """One registered value (an attack, a defense, ...), with its origin."""

    value: Value
    origin: str
    """`built-in`, `entry-point` or `submission`."""
    module: str
    """Name of the plugin in messages."""
    source: str
    """SHA-256 of the plugin's module file, and of the plugin modules it imports."""
    folder: Path | None = None
    """Folder of a submission, with its code and weights."""
    isolation: Isolation = Isolation.IN_PROCESS

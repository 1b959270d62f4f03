"""Cards: what is listed and shown of a registered plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """What a plugin says of itself; all that `list` and the pages need to show it."""

    kind: str
    """`attack`, `defense`, `threat`, `dataset`, `certifier` or `diagnostic`."""
    name: str
    origin: str
    """`built-in`, `entry-point` or `submission`."""
    digest: str = ""
    cite: str = ""
    summary: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Parameters, claims, declared randomness and the like, as JSON values."""

"""The machine class of results: what may change a rounding and so, rarely, a verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, order=True)
class Machine:
    """A machine class, recorded with each chunk; it is no part of a cell's key."""

    device: str
    """`cpu`, or the name of the accelerator."""
    cpu_capability: str
    """The vector instructions that torch uses, such as `AVX2`."""
    torch: str
    """The version of torch."""
    threads: int
    """Threads of one operation."""

    @property
    def sentence(self) -> str:
        """The machine class on one line."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.device}, {self.cpu_capability}, torch {self.torch}, {threads}"

    def to_json(self) -> str:
        """The record as one JSON object, with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The machine class of a stored record."""
        return cls(**json.loads(text))

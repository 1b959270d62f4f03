"""Contract of a diagnostic."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from bench.plugin.defense import Defense


class Finding(StrEnum):
    """What a diagnostic says. Clear and not tested are different facts."""

    RAISED = "raised"
    CLEAR = "clear"
    NOT_TESTED = "not tested"


class Evidence(NamedTuple):
    """The numbers behind a flag."""

    finding: Finding
    sentence: str


class Diagnostic(Protocol):
    """A look at a built defense, before any attack."""

    name: str

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """Judge how it answers a few clean images: 64 of them in a run, 32 in `bench check`."""

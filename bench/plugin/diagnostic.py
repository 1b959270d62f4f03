"""Contract of a diagnostic."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from bench.plugin.defense import Defense


class Finding(StrEnum):
    """The result of a diagnostic."""

    WARNING = "raised"
    """The evidence speaks for masked gradients or cheating."""
    PASSED = "clear"
    """It does not."""
    NOT_TESTED = "not tested"
    """The test does not apply to this defense."""


class Evidence(NamedTuple):
    """The result of a diagnostic with its numbers."""

    finding: Finding
    sentence: str
    """One sentence with the figures on which the finding rests."""


class Diagnostic(Protocol):
    """A test of a built defense for masked gradients or cheating, without an attack.

    Optional attributes: `cite`, `summary`.
    """

    name: str

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """Test the defense's module on clean images x [n, C, H, W] with labels y [n].

        n is 64 in a run and 32 in `bench check`.
        """

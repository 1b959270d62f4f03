"""Contract of a diagnostic."""

from __future__ import annotations

from collections.abc import Callable
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


class AnswerWork(NamedTuple):
    """What a defense computes for one answer to a batch."""

    passes: int
    """Passes of its network; 0 where they cannot be counted."""
    gradients: int
    """Backward passes that it runs itself."""


class Subject(NamedTuple):
    """A built defense with all that a diagnostic may use."""

    module: nn.Module
    """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
    x: Tensor
    """Clean test images [n, C, H, W]."""
    y: Tensor
    """Their labels [n]."""
    defense: Defense
    bpda: nn.Module | None = None
    """The declared BPDA approximation."""
    training: tuple[Tensor, Tensor] | None = None
    """Training images [m, C, H, W] and labels [m]; None where the data set has none."""
    fresh_process: Callable[[Tensor], Tensor | str] | None = None
    """Logits [n, K] of images [n, C, H, W] from the defense built in another process, whose torch
    generator has the seed 0, or the reason why there are none."""
    answer_work: Callable[[Tensor], AnswerWork] | None = None
    """The work of one answer to images [n, C, H, W]; None where it cannot be observed."""


class Diagnostic(Protocol):
    """A test of a built defense for masked gradients or cheating, without an attack.

    Optional attributes: `cite`, `summary`. Optional method: `examine_subject(subject) -> Evidence`,
    which is then called instead of `examine`.
    """

    name: str

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """Test the defense's module on clean images x [n, C, H, W] with labels y [n].

        n is up to 256 in a run and 32 in `bench check`.
        """

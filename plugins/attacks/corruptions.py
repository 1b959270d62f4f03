"""Corruptions of the image, chosen without the model (Hendrycks 2019, arXiv:1903.12261)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bench.plugin import CORRUPTIONS, SEVERITIES, Access, Attack, Problem, hookimpl


@dataclass(frozen=True)
class FixedCorruption:
    """Every image with one corruption of one severity: no search, and no query."""

    name: str
    """One of the corruptions; a variant adds its severity."""
    severity: Literal["1", "2", "3", "4", "5"] = "5"

    needs = Access.NOTHING
    samples = True
    norms = ("corruption",)
    goals = ("untargeted",)
    steps = 1
    cite = "arXiv:1903.12261"

    @property
    def summary(self) -> str:
        """One sentence for lists."""
        return f"The corruption {self.kind} at severity {self.severity}; not adversarial."

    @property
    def kind(self) -> str:
        """The corruption."""
        return self.name.partition("[")[0]

    def start(self, problem: Problem) -> Tensor:
        """The points [n, 7] of the clean images."""
        return problem.ball.start(problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """The points [n, 7] of the corruption, as far as the set allows its severity."""
        point = adv.new_zeros(adv.shape)
        point[:, CORRUPTIONS.index(self.kind)] = int(self.severity) / SEVERITIES
        return problem.ball.project(point, problem.x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register every corruption at its largest severity."""
    for kind in CORRUPTIONS:
        yield FixedCorruption(kind)

"""PGD from many random starts: the worst of them counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl
from plugins.attacks.pgd import PGD


@dataclass(frozen=True)
class PGDRestarts:
    """max over r < R of PGD from x_0^r, each x_0^r uniform in the ball (arXiv:1706.06083).

    Starts are keyed by their number, so fewer of them are the first of more: robust accuracy cannot
    rise with R.
    """

    name = "pgd-restarts"
    needs = Access.GRADIENTS
    cite = "arXiv:1706.06083"
    summary = "Projected gradient ascent on the cross-entropy from twenty random starts."

    restarts: int = 20
    steps: int = 40
    rate: float = 0.1
    """Step length, in radii."""

    def runs(self, classes: int) -> int:
        """Each restart is a run; a row that one of them breaks begins no other."""
        return self.restarts

    def start(self, problem: Problem) -> Tensor:
        """A random point of the set."""
        return self._climb.start(problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of PGD."""
        return self._climb.step(problem, adv)

    @property
    def _climb(self) -> PGD:
        return PGD(steps=self.steps, rate=self.rate)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Twenty starts of forty steps."""
    yield PGDRestarts()

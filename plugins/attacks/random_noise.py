"""Random perturbation: the baseline that every other attack must beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl


@dataclass(frozen=True)
class RandomNoise:
    """A point drawn from the set, brought unseen; the defense is never asked."""

    name = "random"
    needs = Access.NOTHING
    samples = True
    steps = 1
    summary = "Uniform in the ball, clipped to the box."

    draws: int = 1
    """Points an example; any one that wins counts."""

    def restart_count(self, classes: int) -> int:
        """Each draw is a run."""
        return self.draws

    def start(self, problem: Problem) -> Tensor:
        """The clean image."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """A random point instead."""
        return problem.ball.sample(problem.x, problem)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """One draw."""
    yield RandomNoise()

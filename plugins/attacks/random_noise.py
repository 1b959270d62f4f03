"""Uniform random noise: the baseline for every other attack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl


@dataclass(frozen=True)
class RandomNoise:
    """A random point of the perturbation set, drawn without any query of the defense."""

    name = "random"
    needs = Access.NOTHING
    samples = True
    coordinates = True
    steps = 1
    summary = "Uniform noise in the perturbation set, clipped to the box."

    draws: int = 1
    """Points for each example; one that succeeds is enough."""

    def restart_count(self, classes: int) -> int:
        """One restart for each draw."""
        return self.draws

    def start(self, problem: Problem) -> Tensor:
        """The points [n, ...] of the clean images."""
        return problem.ball.start(problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Random points of the set [n, ...]."""
        return problem.ball.sample(problem.x, problem)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with one draw."""
    yield RandomNoise()

"""One pixel by differential evolution (Su et al. 2019, arXiv:1710.08864)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin, per_row


class EvolutionState(NamedTuple):
    """The candidates of a population, each one pixel."""

    adv: Tensor
    """[n, C, H, W]: the worst image so far."""
    worst: Tensor
    """[n]: its margin of the best other class."""
    genes: Tensor
    """[n, population, 2 + C]: row, column and colour of each candidate, in [0, 1]."""
    loss: Tensor
    """[n, population]: the margin of each candidate; -inf before its first query."""


@dataclass(frozen=True)
class OnePixelEvolution:
    """Differential evolution over place and colour of one pixel; step t tries one candidate.

    A candidate is replaced by a + factor (b - c) of three others, drawn at random, where the margin
    there is larger; coordinates outside the image are clamped.
    """

    name = "one-pixel-evolution"
    needs = Access.SCORES
    norms = ("L0",)
    goals = ("untargeted",)
    cite = "arXiv:1710.08864"
    summary = "One pixel by differential evolution over place and colour."

    population: int = 400
    generations: int = 100
    factor: float = 0.5

    @property
    def steps(self) -> int:
        """The first generation and those that replace it."""
        return self.population * (self.generations + 1)

    def start(self, problem: Problem) -> EvolutionState:
        """Uniform places and colours, with no loss known."""
        x = problem.x
        genes = problem.uniform("genes", (self.population, 2 + x.shape[1]))
        worst = torch.full_like(genes[:, 0, 0], -torch.inf)
        return EvolutionState(x, worst, genes, torch.full_like(genes[:, :, 0], -torch.inf))

    def step(self, problem: Problem, state: EvolutionState) -> EvolutionState:
        """Query the next candidate of each row, and keep it where it is better."""
        slot = problem.t % self.population
        rows = torch.arange(len(slot), device=slot.device)
        tried = self._tried(problem, state, rows, slot)
        adv = one_pixel_images(problem.x, tried, changes=problem.ball.radius >= 1)
        found = margin(problem.logits(adv), problem.y)
        better, worse = found > state.loss[rows, slot], found > state.worst
        genes, loss = state.genes.clone(), state.loss.clone()
        genes[rows, slot] = torch.where(better[:, None], tried, genes[rows, slot])
        loss[rows, slot] = torch.where(better, found, loss[rows, slot])
        return EvolutionState(
            torch.where(per_row(worse, adv), adv, state.adv),
            torch.where(worse, found, state.worst),
            genes,
            loss,
        )

    def _tried(self, problem: Problem, state: EvolutionState, rows: Tensor, slot: Tensor) -> Tensor:
        """The genes [n, 2 + C] to query: in the first generation the candidate itself."""
        parents = problem.integers("parents", self.population, (3,))
        one, two, three = (state.genes[rows, parents[:, k]] for k in range(3))
        child = (one + self.factor * (two - three)).clamp(0, 1)
        first = (problem.t < self.population)[:, None]
        return torch.where(first, state.genes[rows, slot], child)


def one_pixel_images(x: Tensor, genes: Tensor, *, changes: bool = True) -> Tensor:
    """Images x [n, C, H, W] with one pixel set by genes [n, 2 + C]; x itself without `changes`."""
    height, width = x.shape[2:]
    row = (genes[:, 0] * height).long().clamp_max(height - 1)
    column = (genes[:, 1] * width).long().clamp_max(width - 1)
    chosen = torch.zeros_like(x[:, 0].flatten(1), dtype=torch.bool)
    chosen = chosen.scatter(1, (row * width + column)[:, None], value=changes)
    return torch.where(chosen.view(len(x), 1, height, width), genes[:, 2:, None, None], x)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register it with the population and generations of the paper."""
    yield OnePixelEvolution()

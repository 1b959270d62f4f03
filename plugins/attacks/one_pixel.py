"""Exhaustive search over single pixels: each place black and white (Su et al., arXiv:1710.08864).

The paper searches by differential evolution; on small images every place can be tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin, per_row


class State(NamedTuple):
    """The worst single pixel so far."""

    adv: Tensor
    """[n, C, H, W]."""
    loss: Tensor
    """[n]: the margin of the best other class there."""


@dataclass(frozen=True)
class OnePixel:
    """Step t sets one place to black or white in all channels; the worst image is kept."""

    name = "one-pixel"
    needs = Access.SCORES
    norms = ("L0",)
    goals = ("untargeted",)
    cite = "arXiv:1710.08864"
    summary = "Every single pixel, black and white: exhaustive on images of up to 8 x 8."

    places: int = 64
    """Number of places that are tried, row by row."""

    @property
    def steps(self) -> int:
        """Two colours of each place."""
        return 2 * self.places

    def start(self, problem: Problem) -> State:
        """The clean images, with no loss known."""
        x = problem.x
        return State(x, torch.full((len(x),), -torch.inf).to(x))

    def step(self, problem: Problem, state: State) -> State:
        """Query the next pixel and colour, and keep it where it is worse."""
        x = problem.x
        place = (problem.t // 2) % (x.shape[2] * x.shape[3])
        chosen = torch.zeros_like(x[:, 0].flatten(1), dtype=torch.bool)
        chosen = chosen.scatter(1, place[:, None], value=True).view(len(x), 1, *x.shape[2:])
        colour = per_row((problem.t % 2).to(x), x)
        adv = torch.where(chosen & (problem.ball.radius >= 1), colour, x)
        loss = margin(problem.logits(adv), problem.y)
        worse = loss > state.loss
        return State(
            torch.where(per_row(worse), adv, state.adv), torch.where(worse, loss, state.loss)
        )

    def stays(self, before: State, after: State) -> Tensor:
        """[n] bool: the pixel was not worse."""
        return before.loss == after.loss


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the search over 64 places."""
    yield OnePixel()

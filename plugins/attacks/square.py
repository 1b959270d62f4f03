"""Square: random search that repaints one square at a time. Scores only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.kit import margin, per_image
from bench.plugin import Access, Attack, Problem, hookimpl

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCALE = 10000  # steps of the schedule in which HALVINGS are counted


class State(NamedTuple):
    """Where the search stands."""

    adv: Tensor
    """[n, C, H, W]: the best image so far; before the first question the stripes."""
    gain: Tensor
    """[n]: its margin max_j z_j - z_y, rising; minus infinity before the first question."""


@dataclass(frozen=True)
class Square:
    """Repaint a random square with +-eps, keep it where the margin gains (arXiv:1912.00049).

    The square covers the share p of the image, and p halves as the search goes on.
    """

    name = "square"
    needs = Access.SCORES
    norms = ("Linf",)
    goals = ("untargeted",)
    cite = "arXiv:1912.00049"
    summary = "Random search over squares of extreme pixels that asks for scores only."

    steps: int = 1000
    share: float = 0.8
    """p of the first square."""

    def start(self, problem: Problem) -> State:
        """Vertical stripes of +-eps, one sign for each channel and column."""
        _, channels, _, width = problem.x.shape
        stripes = signs(problem, "stripes", (channels, 1, width))
        adv = problem.ball.project(problem.x + problem.ball.radius * stripes, problem.x)
        return State(adv, torch.full_like(problem.x[:, 0, 0, 0], -torch.inf))

    def step(self, problem: Problem, state: State) -> State:
        """Ask the stripes first, then a repainted square of each row."""
        question = torch.where(per_image(problem.t == 0), state.adv, self.repainted(problem, state))
        gain = margin(problem.logits(question), problem.y)
        better = gain > state.gain
        adv = torch.where(per_image(better), question, state.adv)
        return State(adv, torch.where(better, gain, state.gain))

    def repainted(self, problem: Problem, state: State) -> Tensor:
        """[n, C, H, W]: the best image with one square at an extreme of the ball.

        Colours that would change nothing are turned round, or the question would be wasted.
        """
        x, ball = problem.x, problem.ball
        inside = window(problem, self.side(problem))
        push = ball.radius * signs(problem, "colour", (x.shape[1], 1, 1))
        one, other = (
            torch.where(inside, ball.project(x + way * push, x), state.adv) for way in (1, -1)
        )
        changed = (one != state.adv).flatten(1).any(1)
        return torch.where(per_image(changed), one, other)

    def side(self, problem: Problem) -> Tensor:
        """[n] int64: the square's side, of area p H W and never the whole image."""
        height, width = problem.x.shape[2:]
        at = torch.tensor(HALVINGS, device=problem.t.device) * self.steps
        halved = (problem.t[:, None] * SCALE > at).sum(1)
        areas = [self.share * 0.5**k * height * width for k in range(len(HALVINGS) + 1)]
        sides = [max(1, min(round(area**0.5), min(height, width) - 1)) for area in areas]
        return torch.tensor(sides, device=problem.t.device)[halved]


def window(problem: Problem, side: Tensor) -> Tensor:
    """[n, 1, H, W] bool: a square of `side` [n] somewhere inside each image."""
    height, width = problem.x.shape[2:]
    down, across = problem.uniform("place", (2,)).unbind(1)
    rows = stretch(down, height, side)
    columns = stretch(across, width, side)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def stretch(place: Tensor, length: int, side: Tensor) -> Tensor:
    """[n, length] bool: `side` neighbours, the first drawn by `place` [n] in [0, 1)."""
    first = (place * (length - side + 1)).long()[:, None]
    position = torch.arange(length, device=side.device)
    return (position >= first) & (position < first + side[:, None])


def signs(problem: Problem, name: str, shape: tuple[int, ...]) -> Tensor:
    """[n, *shape]: +1 or -1, keyed."""
    return (2 * problem.integers(name, 2, shape) - 1).to(problem.x.dtype)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """A thousand questions."""
    yield Square()

"""PGD on the 8-bit grid: every iterate has integer pixel values.

Kurakin et al. 2016, arXiv:1607.02533.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Attack, PerturbationSet, Problem, cross_entropy, hookimpl, per_row

LEVELS = 255
SLACK = 1e-4  # of a level, because k/255 is not exact in float32


@dataclass(frozen=True)
class GridPGD:
    """PGD whose iterates are rounded to k/255 inside the set (arXiv:1607.02533).

    A step moves at least one pixel by a whole level, since rounding would undo a shorter one.
    """

    name = "pgd-8bit"
    needs = Access.GRADIENTS
    cite = "arXiv:1607.02533"
    summary = "Projected gradient ascent whose iterates are images of 8 bits a channel."

    steps: int = 40
    rate: float = 0.1
    """Step size, in radii; at least one level of the pixel that moves most."""

    def start(self, problem: Problem) -> Tensor:
        """Rounded random points of the set [n, C, H, W]."""
        return rounded(problem.ball.sample(problem.x, problem), problem.x, problem.ball)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step of ascent, projected onto the set and rounded; [n, C, H, W]."""
        ball = problem.ball
        gradient = problem.gradient(adv, cross_entropy).gradient
        largest = ball.steepest(gradient, adv).flatten(1).abs().amax(1)
        level = 1 / (LEVELS * ball.radius * largest) if ball.radius else torch.zeros_like(largest)
        rate = level.clamp(self.rate, 2)
        return rounded(ball.ascend(adv, gradient, rate, problem.x), problem.x, ball)


def rounded(adv: Tensor, x: Tensor, ball: PerturbationSet) -> Tensor:
    """The images [n, C, H, W] with each pixel at the nearest level k/255.

    Where that leaves the set, each pixel is rounded towards the clean one, which never leaves it. A
    clean pixel off the grid stays where no level lies between it and the iterate.
    """
    nearest = ((adv * LEVELS).round() / LEVELS).clamp(0, 1)
    nearest = torch.where(on_same_level(nearest, x), x, nearest)
    return torch.where(per_row(ball.contains(nearest, x)), nearest, towards(adv, x))


def towards(adv: Tensor, x: Tensor) -> Tensor:
    """The images [n, C, H, W] with each pixel at the first level from `adv` towards `x`."""
    down, up = (adv * LEVELS + SLACK).floor(), (adv * LEVELS - SLACK).ceil()
    level = torch.where(adv > x, down, up) / LEVELS
    passed = torch.where(adv > x, level <= x, level >= x)
    return torch.where(passed | on_same_level(level, x), x, level)


def on_same_level(image: Tensor, x: Tensor) -> Tensor:
    """Whether pixels of images [n, C, H, W] differ by rounding only, bool [n, C, H, W]."""
    return (image - x).abs() * LEVELS < SLACK


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with the steps and the step size of PGD."""
    yield GridPGD()

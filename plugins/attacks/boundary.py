"""Boundary attack: a random walk along the decision boundary that needs labels only.

Brendel et al. 2018, arXiv:1712.04248.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, StopRule, hookimpl, per_row

SPHERICAL_SUCCESS, SOURCE_SUCCESS = (
    0.3,
    0.25,
)  # success rates at which the two step lengths stay the same
ADAPTATION = 0.2  # largest change of the logarithm of a step length in one step


class State(NamedTuple):
    """State of the random walk."""

    adv: Tensor
    """[n, C, H, W]: the nearest adversarial image; the clean image until there is one."""
    found: Tensor
    """[n] bool: there is an adversarial image to start from."""
    spherical_step: Tensor
    source_step: Tensor
    """[n]: lengths of a step along the sphere and of one towards the clean image, in distances to
    it."""
    given_up: Tensor
    """[n] bool: none of the noise images was adversarial, so the walk has no starting point."""


@dataclass(frozen=True)
class Boundary:
    """Boundary attack: random steps along the sphere around x, then straight towards x.

    Each step is one query. A row whose image is still adversarial moves there, and its next step of
    that kind is longer; elsewhere it is shorter (arXiv:1712.04248).
    """

    name = "boundary"
    needs = Access.LABELS
    norms = ("L2",)
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1712.04248"
    summary = "A random walk along the decision boundary that needs labels only."

    steps: int = 3000
    starts: int = 100
    """Noise images tried as starting points; a row without an adversarial one stays robust."""

    def start(self, problem: Problem) -> State:
        """No starting point yet."""
        one = torch.ones_like(problem.x[:, 0, 0, 0])
        return State(problem.x, one > 1, 0.1 * one, 0.5 * one, one > 1)

    def step(self, problem: Problem, state: State) -> State:
        """Query one image of each row: noise, a point along the sphere, or a point nearer to x."""
        adv, found, around, inward, _ = state
        turn = problem.t % 2 == 0
        nearer = problem.x + per_row(1 - inward) * (adv - problem.x)
        walk = torch.where(per_row(turn), spherical_proposal(problem, adv, around), nearer)
        query = torch.where(per_row(found), walk, noise(problem))
        querying = found | (problem.t < self.starts)
        wrong = problem.reaches_goal(problem.labels(query, querying)) & querying
        around = torch.where(found & turn, adapted(around, wrong, SPHERICAL_SUCCESS), around)
        inward = torch.where(
            found & ~turn, adapted(inward, wrong, SOURCE_SUCCESS), inward
        ).clamp_max(0.5)
        adv = torch.where(per_row(wrong), query, adv)
        return State(adv, found | wrong, around, inward, given_up=~querying)

    def done(self, state: State) -> Tensor:
        """Whether no starting point was found or the next step is below float32 resolution, [n]."""
        return state.given_up | (state.source_step < 1e-6)


def adapted(length: Tensor, won: Tensor, rate: float) -> Tensor:
    """The next step length [n], constant on average at a success share of `rate`.

    `won` [n] bool is the result of the last query.
    """
    return length * (ADAPTATION * (won.to(length.dtype) - rate)).exp()


def spherical_proposal(problem: Problem, adv: Tensor, around: Tensor) -> Tensor:
    """A random step orthogonal to the direction of x, at the old distance from x: [n, C, H, W].

    `adv` is [n, C, H, W] and `around` [n] the length of the step, in distances.
    """
    x, ball = problem.x, problem.ball
    change, old = adv - x, ball.distance(adv, x)
    push = problem.normal("push", tuple(x.shape[1:]))
    along = (push * change).flatten(1).sum(1) / change.square().flatten(1).sum(1).clamp_min(1e-12)
    push = push - per_row(along) * change
    length = push.square().flatten(1).sum(1).sqrt().clamp_min(1e-12)
    moved = (adv + per_row(around * old / length) * push).clamp(0, 1)
    back = (old / ball.distance(moved, x).clamp_min(1e-12)).clamp_max(1)
    return x + per_row(back) * (moved - x)


def noise(problem: Problem) -> Tensor:
    """Uniform noise [n, C, H, W] of random contrast around a random grey level.

    Noise of one kind would mostly fall into one class.
    """
    grain = problem.uniform("grain", tuple(problem.x.shape[1:])) - 0.5
    contrast, grey = problem.uniform("look", (2, 1, 1, 1)).unbind(1)
    return (grey + 4 * contrast * grain).clamp(0, 1)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the Boundary attack with at most 3000 queries."""
    yield Boundary()

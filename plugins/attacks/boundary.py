"""Boundary: from far outside, walk along the border towards the clean image. Labels only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, StopRule, hookimpl, per_image

SPHERICAL_SUCCESS, SOURCE_SUCCESS = (
    0.3,
    0.25,
)  # rates of success at which the two step lengths stand still
ADAPTATION = 0.2  # by how much the logarithm of a length may move in one step


class State(NamedTuple):
    """Where the walk stands."""

    adv: Tensor
    """[n, C, H, W]: the nearest success; the clean image until there is one."""
    found: Tensor
    """[n] bool: there is a success to walk from."""
    spherical_step: Tensor
    source_step: Tensor
    """[n]: lengths of a step along the sphere and towards the clean image, in distances to it."""
    given_up: Tensor
    """[n] bool: none of the noise images was a success, so there is nothing to walk from."""


@dataclass(frozen=True)
class Boundary:
    """Random steps along the sphere around x, then straight towards x (arXiv:1712.04248).

    Each step is one question; a row that is still wrong there moves, and its next step of that
    kind is longer; else it is shorter.
    """

    name = "boundary"
    needs = Access.LABELS
    norms = ("L2",)
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1712.04248"
    summary = "A random walk along the decision border that asks for labels only."

    steps: int = 3000
    starts: int = 100
    """Noise images tried for a start; a row that finds none has held."""

    def start(self, problem: Problem) -> State:
        """Nothing found yet."""
        one = torch.ones_like(problem.x[:, 0, 0, 0])
        return State(problem.x, one > 1, 0.1 * one, 0.5 * one, one > 1)

    def step(self, problem: Problem, state: State) -> State:
        """Ask one image of each row: a noise, a point along the sphere, or one nearer to x."""
        adv, found, around, inward, _ = state
        turn = problem.t % 2 == 0
        nearer = problem.x + per_image(1 - inward) * (adv - problem.x)
        walk = torch.where(per_image(turn), spherical_proposal(problem, adv, around), nearer)
        question = torch.where(per_image(found), walk, noise(problem))
        asking = found | (problem.t < self.starts)
        wrong = problem.wrong(problem.labels(question, asking)) & asking
        around = torch.where(found & turn, adapted(around, wrong, SPHERICAL_SUCCESS), around)
        inward = torch.where(
            found & ~turn, adapted(inward, wrong, SOURCE_SUCCESS), inward
        ).clamp_max(0.5)
        adv = torch.where(per_image(wrong), question, adv)
        return State(adv, found | wrong, around, inward, given_up=~asking)

    def done(self, state: State) -> Tensor:
        """[n] bool: no start was found, or the next step inward is below float32's resolution."""
        return state.given_up | (state.source_step < 1e-6)


def adapted(length: Tensor, won: Tensor, rate: float) -> Tensor:
    """The next length [n]; its logarithm stands still where `rate` of the steps win."""
    return length * (ADAPTATION * (won.to(length.dtype) - rate)).exp()


def spherical_proposal(problem: Problem, adv: Tensor, around: Tensor) -> Tensor:
    """[n, C, H, W]: a random step across the line to x, brought back to the old distance."""
    x, ball = problem.x, problem.ball
    change, old = adv - x, ball.distance(adv, x)
    push = problem.normal("push", tuple(x.shape[1:]))
    along = (push * change).flatten(1).sum(1) / change.square().flatten(1).sum(1).clamp_min(1e-12)
    push = push - per_image(along) * change
    length = push.square().flatten(1).sum(1).sqrt().clamp_min(1e-12)
    moved = (adv + per_image(around * old / length) * push).clamp(0, 1)
    back = (old / ball.distance(moved, x).clamp_min(1e-12)).clamp_max(1)
    return x + per_image(back) * (moved - x)


def noise(problem: Problem) -> Tensor:
    """[n, C, H, W]: grain of any contrast on any grey, so that starts differ in class."""
    grain = problem.uniform("grain", tuple(problem.x.shape[1:])) - 0.5
    contrast, grey = problem.uniform("look", (2, 1, 1, 1)).unbind(1)
    return (grey + 4 * contrast * grain).clamp(0, 1)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """At most three thousand questions."""
    yield Boundary()

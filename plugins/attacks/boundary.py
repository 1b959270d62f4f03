"""Boundary: from far outside, walk along the border towards the clean image. Labels only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, Retire, hookimpl

ALONG, TOWARDS = 0.3, 0.25  # rates of success at which the two step lengths stand still


class State(NamedTuple):
    """Where the walk stands."""

    adv: Tensor
    """[n, C, H, W]: the nearest success; the clean image until there is one."""
    found: Tensor
    """[n] bool: there is a success to walk from."""
    around: Tensor
    """[n]: length of a step along the sphere, in distances to the clean image."""
    inward: Tensor
    """[n]: length of a step towards the clean image, in distances to it; 0 gives up."""


@dataclass(frozen=True)
class Boundary:
    """Random steps along the sphere around x, then straight towards x (arXiv:1712.04248).

    Each step is one question; a row that is still wrong there moves. The two lengths follow their
    own rates of success, row by row: longer after a success, shorter after a failure.
    """

    name = "boundary"
    needs = Access.LABELS
    norms = ("L2",)
    goals = ("untargeted", "nearest")
    retires = Retire.CONVERGENCE
    minimises = True
    cite = "arXiv:1712.04248"
    summary = "A random walk along the decision border that asks for labels only."

    steps: int = 3000
    starts: int = 100
    """Noise images tried for a start; a row that finds none has held."""
    pace: float = 0.2
    """By how much the logarithm of a length may move in one step."""

    def start(self, problem: Problem) -> State:
        """Nothing found yet."""
        one = torch.ones_like(problem.x[:, 0, 0, 0])
        return State(problem.x, one > 1, 0.1 * one, 0.5 * one)

    def step(self, problem: Problem, state: State) -> State:
        """Ask one image of each row: a noise, a point along the sphere, or one nearer to x."""
        adv, found, around, inward = state
        turn = problem.t % 2 == 0
        nearer = problem.x + images(1 - inward) * (adv - problem.x)
        walk = torch.where(images(turn), sideways(problem, adv, around), nearer)
        question = torch.where(images(found), walk, noise(problem))
        asking = found | (problem.t < self.starts)
        wrong = problem.wrong(problem.labels(question, asking)) & asking
        around = torch.where(found & turn, self.paced(around, wrong, ALONG), around)
        nearing = self.paced(inward, wrong, TOWARDS).clamp_max(0.5)
        inward = torch.where(found & ~turn, nearing, inward) * asking
        return State(torch.where(images(wrong), question, adv), found | wrong, around, inward)

    def done(self, state: State) -> Tensor:
        """[n] bool: the next step inward is below the resolution of float32."""
        return state.inward < 1e-6

    def paced(self, length: Tensor, won: Tensor, rate: float) -> Tensor:
        """The next length [n]; its logarithm stands still where `rate` of the steps win."""
        return length * (self.pace * (won.to(length.dtype) - rate)).exp()


def sideways(problem: Problem, adv: Tensor, around: Tensor) -> Tensor:
    """[n, C, H, W]: a random step across the line to x, brought back to the old distance."""
    x, ball = problem.x, problem.ball
    change, old = adv - x, ball.distance(adv, x)
    push = problem.normal("push", tuple(x.shape[1:]))
    along = (push * change).flatten(1).sum(1) / change.square().flatten(1).sum(1).clamp_min(1e-12)
    push = push - images(along) * change
    length = push.square().flatten(1).sum(1).sqrt().clamp_min(1e-12)
    moved = (adv + images(around * old / length) * push).clamp(0, 1)
    back = (old / ball.distance(moved, x).clamp_min(1e-12)).clamp_max(1)
    return x + images(back) * (moved - x)


def noise(problem: Problem) -> Tensor:
    """[n, C, H, W]: grain of any contrast on any grey, so that starts differ in class."""
    grain = problem.uniform("grain", tuple(problem.x.shape[1:])) - 0.5
    contrast, grey = problem.uniform("look", (2, 1, 1, 1)).unbind(1)
    return (grey + 4 * contrast * grain).clamp(0, 1)


def images(value: Tensor) -> Tensor:
    """[n] shaped to multiply images."""
    return value[:, None, None, None]


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """At most three thousand questions."""
    yield Boundary()

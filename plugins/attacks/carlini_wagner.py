"""Carlini-Wagner in L2: trade the distance against the margin, search for the price."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Gradient, Problem, StopRule, hookimpl, margin, per_image

INSIDE = 0.9999  # of the way to the edge of the box, where artanh is infinite and tanh is flat
DECAY, SQUARES = 0.9, 0.999  # of Adam's two running means


class State(NamedTuple):
    """Where the search of each row stands."""

    adv: Tensor
    """[n, C, H, W]: the nearest success; the clean image until there is one."""
    distance: Tensor
    """[n]: of it; infinite until there is one."""
    w: Tensor
    """[n, C, H, W]: what Adam moves; the image is (1 + tanh w) / 2."""
    mean: Tensor
    square: Tensor
    """[n, C, H, W]: Adam's running means."""
    price: Tensor
    low: Tensor
    high: Tensor
    """[n]: c, the largest one that failed, and the least one that won (or infinite)."""
    checked: Tensor
    """[n]: the objective when it was last looked at."""
    place: Tensor
    """[n] int64: steps made in this round."""
    ended: Tensor
    """[n] int64: rounds that are over."""
    won: Tensor
    """[n] bool: this round has met a success."""


@dataclass(frozen=True)
class CarliniWagner:
    """min ||x' - x||^2 + c max(z_y - max_j z_j, -kappa), x' = (1 + tanh w) / 2 (arXiv:1608.04644).

    Each round is Adam from the clean image at one c; c grows tenfold until a round wins, then the
    bracket is halved. A row whose round has converged begins its next one at once.
    """

    name = "cw"
    needs = Access.GRADIENTS
    norms = ("L2",)
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1608.04644"
    summary = "Adam on distance plus margin, with a binary search for the price of the margin."

    rounds: int = 9
    length: int = 100
    """Most steps of a round."""
    rate: float = 0.05
    """Of Adam, in units of w."""
    price: float = 0.01
    """The first c."""
    kappa: float = 0.0
    """The margin that a success must have."""
    precision: float = 0.05
    """A row ends when its bracket is this narrow, in shares of its upper end."""
    improves: float = 0.9999
    """A round has converged when a tenth of it brings the objective to more than this share."""

    @property
    def steps(self) -> int:
        """All rounds, at their longest."""
        return self.rounds * self.length

    def start(self, problem: Problem) -> State:
        """Nothing found, the first price."""
        nothing, zero = torch.zeros_like(problem.x), torch.zeros_like(problem.x[:, 0, 0, 0])
        none, count = zero + math.inf, zero.long()
        return State(
            problem.x, none, nothing, nothing, nothing,
            zero + self.price, zero, none, none, count, count, zero > 0,
        )  # fmt: skip

    def step(self, problem: Problem, state: State) -> State:
        """Ask one image of each row, and move it downhill."""
        origin = inside(problem.x)
        state = begun(state, origin)
        image = (1 + state.w.tanh()) / 2
        answer = problem.gradient(image, self.gain)
        state = self.kept(problem, state, image, answer)
        change = image - (1 + origin.tanh()) / 2
        objective = change.square().flatten(1).sum(1) - state.price * answer.loss
        slope = 2 * change - per_image(state.price) * answer.gradient
        return self.judged(self.moved(state, 2 * image * (1 - image) * slope), objective)

    def done(self, state: State) -> Tensor:
        """[n] bool: the price is known well enough, or no round is left."""
        narrow = state.high - state.low < self.precision * state.high
        return narrow | (state.ended >= self.rounds)

    def gain(self, logits: Tensor, label: Tensor) -> Tensor:
        """[n]: the margin, worth nothing more beyond kappa."""
        return margin(logits, label).clamp_max(self.kappa)

    def kept(self, problem: Problem, state: State, image: Tensor, answer: Gradient) -> State:
        """Remember successes, and the nearest of them."""
        success = problem.wrong(answer.logits) & (answer.loss >= self.kappa)
        distance = problem.ball.distance(image, problem.x)
        nearer = success & (distance < state.distance)
        return state._replace(
            adv=torch.where(per_image(nearer), image, state.adv),
            distance=torch.where(nearer, distance, state.distance),
            won=state.won | success,
        )

    def moved(self, state: State, slope: Tensor) -> State:
        """Adam's next step of each row's round; slope [n, C, H, W] is of w."""
        count = state.place + 1
        mean = DECAY * state.mean + (1 - DECAY) * slope
        square = SQUARES * state.square + (1 - SQUARES) * slope.square()
        first, second = (-torch.expm1(count * math.log(b)) for b in (DECAY, SQUARES))
        size = (square / per_image(second)).sqrt() + 1e-8
        w = state.w - self.rate * (mean / per_image(first)) / size
        return state._replace(w=w, mean=mean, square=square)

    def judged(self, state: State, objective: Tensor) -> State:
        """Ten times a round: where the objective [n] falls no more, the round is over."""
        look = state.place % max(1, self.length // 10) == 0
        stuck = look & (objective > self.improves * state.checked)
        last = stuck | (state.place == self.length - 1)
        return self.priced(state, last)._replace(
            checked=torch.where(look, objective, state.checked),
            place=torch.where(last, 0, state.place + 1),
            ended=state.ended + last,
        )

    def priced(self, state: State, last: Tensor) -> State:
        """At the end of a round: cheaper after a win, dearer after a loss."""
        high = torch.where(last & state.won, torch.minimum(state.high, state.price), state.high)
        low = torch.where(last & ~state.won, torch.maximum(state.low, state.price), state.low)
        following = torch.where(high.isinf(), 10 * state.price, (low + high) / 2)
        return state._replace(price=torch.where(last, following, state.price), low=low, high=high)


def inside(x: Tensor) -> Tensor:
    """[n, C, H, W]: the w of the clean image, pulled a little from the edge of the box."""
    return torch.atanh((2 * x - 1) * INSIDE)


def begun(state: State, origin: Tensor) -> State:
    """Rows at place 0 begin their round at the w `origin` [n, C, H, W], Adam without a past."""
    fresh = state.place == 0
    rows = per_image(fresh)
    return state._replace(
        w=torch.where(rows, origin, state.w),
        mean=state.mean.masked_fill(rows, 0),
        square=state.square.masked_fill(rows, 0),
        checked=state.checked.masked_fill(fresh, math.inf),
        won=state.won & ~fresh,
    )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Nine rounds of a hundred steps."""
    yield CarliniWagner()

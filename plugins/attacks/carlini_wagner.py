"""Carlini-Wagner in L2: trade the distance against the margin, search for the price."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.kit import margin, per_image
from bench.plugin import Access, Attack, Gradient, Problem, Retire, hookimpl

INSIDE = 0.9999  # of the way to the edge of the box, where artanh is infinite and tanh is flat
DECAY, SQUARES = 0.9, 0.999  # of Adam's two running means
IMPROVES = 0.9999  # a tenth of a round that falls by less has converged


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
    over: Tensor
    """[n] bool: this round has converged."""
    won: Tensor
    """[n] bool: this round has met a success."""


@dataclass(frozen=True)
class CarliniWagner:
    """min ||x' - x||^2 + c max(z_y - max_j z_j, -kappa), x' = (1 + tanh w) / 2 (arXiv:1608.04644).

    Each round is Adam from the clean image at one c; c grows tenfold until a round wins, then the
    bracket is halved. The place in the schedule is problem.t alone.
    """

    name = "cw"
    needs = Access.GRADIENTS
    norms = ("L2",)
    goals = ("untargeted", "nearest")
    retires = Retire.CONVERGENCE
    minimises = True
    cite = "arXiv:1608.04644"
    summary = "Adam on distance plus margin, with a binary search for the price of the margin."

    rounds: int = 9
    length: int = 100
    """Steps of a round."""
    rate: float = 0.05
    """Of Adam, in units of w."""
    price: float = 0.01
    """The first c."""
    kappa: float = 0.0
    """The margin that a success must have."""
    precision: float = 0.05
    """A row ends when its bracket is this narrow, in shares of its upper end."""

    @property
    def steps(self) -> int:
        """All rounds."""
        return self.rounds * self.length

    def start(self, problem: Problem) -> State:
        """Nothing found, the first price."""
        nothing, zero = torch.zeros_like(problem.x), torch.zeros_like(problem.x[:, 0, 0, 0])
        none, never = zero + math.inf, zero > 0
        return State(
            problem.x, none, nothing, nothing, nothing,
            zero + self.price, zero, none, none, never, never,
        )  # fmt: skip

    def step(self, problem: Problem, state: State) -> State:
        """Ask one image of each row whose round is not over, and move it downhill."""
        place = problem.t % self.length
        state = begun(state, problem.x, place == 0)
        image = (1 + state.w.tanh()) / 2
        answer = problem.gradient(image, self.gain, ~state.over)
        state = self.kept(problem, state, image, answer)
        origin = (1 + inside(problem.x).tanh()) / 2
        change = image - origin
        objective = change.square().flatten(1).sum(1) - state.price * answer.loss
        slope = 2 * change - per_image(state.price) * answer.gradient
        state = self.moved(state, 2 * image * (1 - image) * slope, place + 1)
        return self.priced(self.paused(state, objective, place), place == self.length - 1)

    def done(self, state: State) -> Tensor:
        """[n] bool: the price is known well enough."""
        return state.high - state.low < self.precision * state.high

    def gain(self, logits: Tensor, label: Tensor) -> Tensor:
        """[n]: the margin, worth nothing more beyond kappa."""
        return margin(logits, label).clamp_max(self.kappa)

    def kept(self, problem: Problem, state: State, image: Tensor, answer: Gradient) -> State:
        """Remember successes, and the nearest of them."""
        success = problem.wrong(answer.logits) & (answer.loss >= self.kappa) & ~state.over
        distance = problem.ball.distance(image, problem.x)
        nearer = success & (distance < state.distance)
        return state._replace(
            adv=torch.where(per_image(nearer), image, state.adv),
            distance=torch.where(nearer, distance, state.distance),
            won=state.won | success,
        )

    def moved(self, state: State, slope: Tensor, count: Tensor) -> State:
        """Adam's step number `count` [n] of each row's round; slope [n, C, H, W] is of w."""
        mean = DECAY * state.mean + (1 - DECAY) * slope
        square = SQUARES * state.square + (1 - SQUARES) * slope.square()
        first, second = (-torch.expm1(count * math.log(b)) for b in (DECAY, SQUARES))
        size = (square / per_image(second)).sqrt() + 1e-8
        w = state.w - self.rate * (mean / per_image(first)) / size
        return state._replace(w=w, mean=mean, square=square)

    def paused(self, state: State, objective: Tensor, place: Tensor) -> State:
        """Ten times a round: a row whose objective [n] falls no more waits for the next round."""
        look = place % max(1, self.length // 10) == 0
        stuck = look & (objective > IMPROVES * state.checked)
        checked = torch.where(look, objective, state.checked)
        return state._replace(over=state.over | stuck, checked=checked)

    def priced(self, state: State, last: Tensor) -> State:
        """At the end of a round: cheaper after a win, dearer after a loss."""
        high = torch.where(last & state.won, torch.minimum(state.high, state.price), state.high)
        low = torch.where(last & ~state.won, torch.maximum(state.low, state.price), state.low)
        following = torch.where(high.isinf(), 10 * state.price, (low + high) / 2)
        return state._replace(price=torch.where(last, following, state.price), low=low, high=high)


def inside(x: Tensor) -> Tensor:
    """[n, C, H, W]: the w of the clean image, pulled a little from the edge of the box."""
    return torch.atanh((2 * x - 1) * INSIDE)


def begun(state: State, x: Tensor, fresh: Tensor) -> State:
    """Rows that begin a round [n] bool: at the clean image, Adam without a past."""
    rows = per_image(fresh)
    return state._replace(
        w=torch.where(rows, inside(x), state.w),
        mean=state.mean.masked_fill(rows, 0),
        square=state.square.masked_fill(rows, 0),
        checked=state.checked.masked_fill(fresh, math.inf),
        over=state.over & ~fresh,
        won=state.won & ~fresh,
    )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Nine rounds of a hundred steps."""
    yield CarliniWagner()

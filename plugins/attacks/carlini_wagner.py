"""Carlini and Wagner's attack in L2: Adam on distance plus margin, with a binary search.

Carlini and Wagner 2017, arXiv:1608.04644.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Gradient, Problem, StopRule, hookimpl, margin, per_row

BOX_SHARE = 0.9999  # of the way to the edge of the box, where artanh is infinite
BETA_1, BETA_2 = 0.9, 0.999  # of Adam's two running means


class Adam(NamedTuple):
    """Adam's variable and its two running means, [n, C, H, W] each."""

    w: Tensor
    mean: Tensor
    square: Tensor


class State(NamedTuple):
    """State of the search, one example a row."""

    adv: Tensor
    """[n, C, H, W]: the nearest adversarial image; the clean image until there is one."""
    distance: Tensor
    """[n]: its distance; infinite until there is one."""
    w: Tensor
    """[n, C, H, W]: the variable of Adam; the image is (1 + tanh w) / 2."""
    mean: Tensor
    square: Tensor
    """[n, C, H, W]: Adam's running means of the gradient and of its square."""
    constant: Tensor
    low: Tensor
    high: Tensor
    """[n]: c, the largest c that failed, and the smallest c that succeeded (or infinity)."""
    checked_objective: Tensor
    """[n]: the objective at the last convergence check."""
    round_step: Tensor
    """[n] int64: steps made in this round."""
    finished_rounds: Tensor
    """[n] int64: rounds that are over."""
    succeeded: Tensor
    """[n] bool: this round has found an adversarial image."""


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner's L2 attack, with a binary search for the weight c of the margin.

    It minimises ||x' - x||^2 + c max(z_y - max_j z_j, -kappa) over x' = (1 + tanh w) / 2
    (arXiv:1608.04644). Each round is Adam from the clean image with one c. c grows tenfold until a
    round succeeds, then the interval of c is halved. A row whose round has converged starts its
    next round at once.
    """

    name = "cw"
    needs = Access.GRADIENTS
    norms = ("L2",)
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1608.04644"
    summary = "Adam on distance plus margin, with a binary search for the weight of the margin."

    rounds: int = 9
    length: int = 100
    """Largest number of steps of a round."""
    rate: float = 0.05
    """Learning rate of Adam, in units of w."""
    price: float = 0.01
    """The first c."""
    kappa: float = 0.0
    """Smallest margin of a successful image."""
    precision: float = 0.05
    """A row ends when its interval of c is narrower than this share of its upper end."""
    improves: float = 0.9999
    """A round has converged when a tenth of its steps leave the objective above this share."""

    @property
    def steps(self) -> int:
        """All rounds at their full length."""
        return self.rounds * self.length

    def start(self, problem: Problem) -> State:
        """No adversarial image, the first c."""
        zeros, zero = torch.zeros_like(problem.x), torch.zeros_like(problem.x[:, 0, 0, 0])
        infinite, count = zero + math.inf, zero.long()
        return State(
            problem.x, infinite, zeros, zeros, zeros,
            zero + self.price, zero, infinite, infinite, count, count, zero > 0,
        )  # fmt: skip

    def step(self, problem: Problem, state: State) -> State:
        """Query one image of each row, then make one step of Adam on the objective."""
        origin = tanh_space(problem.x)
        state = begin_rounds(state, origin)
        image = (1 + state.w.tanh()) / 2
        result = problem.gradient(image, self.margin_loss)
        state = self.with_best(problem, state, image, result)
        change = image - (1 + origin.tanh()) / 2
        objective = change.square().flatten(1).sum(1) - state.constant * result.loss
        gradient = 2 * change - per_row(state.constant) * result.gradient
        return self.end_converged_rounds(
            self.adam_step(state, 2 * image * (1 - image) * gradient), objective
        )

    def done(self, state: State) -> Tensor:
        """Whether the interval of c is narrow enough or no round is left, [n] bool."""
        narrow = state.high - state.low < self.precision * state.high
        return narrow | (state.finished_rounds >= self.rounds)

    def margin_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The margin [n] of logits [n, K], cut off at kappa."""
        return margin(logits, label).clamp_max(self.kappa)

    def with_best(self, problem: Problem, state: State, image: Tensor, result: Gradient) -> State:
        """The state after a query: images [n, C, H, W] that succeed closer by become the best."""
        success = problem.reaches_goal(result.logits) & (result.loss >= self.kappa)
        distance = problem.ball.distance(image, problem.x)
        nearer = success & (distance < state.distance)
        return state._replace(
            adv=torch.where(per_row(nearer), image, state.adv),
            distance=torch.where(nearer, distance, state.distance),
            succeeded=state.succeeded | success,
        )

    def adam_step(self, state: State, gradient: Tensor) -> State:
        """Adam's next step of each row's round; `gradient` [n, C, H, W] is the gradient for w."""
        before = Adam(state.w, state.mean, state.square)
        w, mean, square = adam_step(before, gradient, state.round_step + 1, self.rate)
        return state._replace(w=w, mean=mean, square=square)

    def end_converged_rounds(self, state: State, objective: Tensor) -> State:
        """End the rounds whose objective [n] no longer falls; it is checked ten times a round."""
        check = state.round_step % max(1, self.length // 10) == 0
        converged = check & (objective > self.improves * state.checked_objective)
        last = converged | (state.round_step == self.length - 1)
        return self.update_constant(state, last)._replace(
            checked_objective=torch.where(check, objective, state.checked_objective),
            round_step=torch.where(last, 0, state.round_step + 1),
            finished_rounds=state.finished_rounds + last,
        )

    def update_constant(self, state: State, last: Tensor) -> State:
        """At the end of a round ([n] bool): a smaller c after a success, else a larger one."""
        high = torch.where(
            last & state.succeeded, torch.minimum(state.high, state.constant), state.high
        )
        low = torch.where(
            last & ~state.succeeded, torch.maximum(state.low, state.constant), state.low
        )
        following = torch.where(high.isinf(), 10 * state.constant, (low + high) / 2)
        return state._replace(
            constant=torch.where(last, following, state.constant), low=low, high=high
        )


def tanh_space(x: Tensor) -> Tensor:
    """The w [n, C, H, W] of images x [n, C, H, W], moved slightly from the edges of the box."""
    return torch.atanh((2 * x - 1) * BOX_SHARE)


def adam_step(before: Adam, gradient: Tensor, count: Tensor, rate: float) -> Adam:
    """Adam after step number `count` [n] of each row, with this gradient [n, C, H, W] for w."""
    mean = BETA_1 * before.mean + (1 - BETA_1) * gradient
    square = BETA_2 * before.square + (1 - BETA_2) * gradient.square()
    first, second = (-torch.expm1(count * math.log(b)) for b in (BETA_1, BETA_2))
    size = (square / per_row(second)).sqrt() + 1e-8
    return Adam(before.w - rate * (mean / per_row(first)) / size, mean, square)


def begin_rounds(state: State, origin: Tensor) -> State:
    """Start a round with a new Adam state at w `origin` [n, C, H, W], where `round_step` is 0."""
    fresh = state.round_step == 0
    rows = per_row(fresh)
    return state._replace(
        w=torch.where(rows, origin, state.w),
        mean=state.mean.masked_fill(rows, 0),
        square=state.square.masked_fill(rows, 0),
        checked_objective=state.checked_objective.masked_fill(fresh, math.inf),
        succeeded=state.succeeded & ~fresh,
    )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with nine rounds of a hundred steps."""
    yield CarliniWagner()

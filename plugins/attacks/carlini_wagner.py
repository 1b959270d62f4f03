"""Carlini-Wagner in L2: trade the distance against the margin, search for the price."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Gradient, Problem, StopRule, hookimpl, margin, per_image

BOX_SHARE = 0.9999  # of the way to the edge of the box, where artanh is infinite and tanh is flat
BETA_1, BETA_2 = 0.9, 0.999  # of Adam's two running means


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
    constant: Tensor
    low: Tensor
    high: Tensor
    """[n]: c, the largest one that failed, and the least one that won (or infinite)."""
    checked_objective: Tensor
    """[n]: the objective when it was last looked at."""
    round_step: Tensor
    """[n] int64: steps made in this round."""
    finished_rounds: Tensor
    """[n] int64: rounds that are over."""
    succeeded: Tensor
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
        origin = tanh_space(problem.x)
        state = begin_rounds(state, origin)
        image = (1 + state.w.tanh()) / 2
        answer = problem.gradient(image, self.margin_loss)
        state = self.with_best(problem, state, image, answer)
        change = image - (1 + origin.tanh()) / 2
        objective = change.square().flatten(1).sum(1) - state.constant * answer.loss
        slope = 2 * change - per_image(state.constant) * answer.gradient
        return self.end_converged_rounds(
            self.adam_step(state, 2 * image * (1 - image) * slope), objective
        )

    def done(self, state: State) -> Tensor:
        """[n] bool: the price is known well enough, or no round is left."""
        narrow = state.high - state.low < self.precision * state.high
        return narrow | (state.finished_rounds >= self.rounds)

    def margin_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """[n]: the margin, worth nothing more beyond kappa."""
        return margin(logits, label).clamp_max(self.kappa)

    def with_best(self, problem: Problem, state: State, image: Tensor, answer: Gradient) -> State:
        """Remember successes, and the nearest of them."""
        success = problem.wrong(answer.logits) & (answer.loss >= self.kappa)
        distance = problem.ball.distance(image, problem.x)
        nearer = success & (distance < state.distance)
        return state._replace(
            adv=torch.where(per_image(nearer), image, state.adv),
            distance=torch.where(nearer, distance, state.distance),
            succeeded=state.succeeded | success,
        )

    def adam_step(self, state: State, slope: Tensor) -> State:
        """Adam's next step of each row's round; slope [n, C, H, W] is of w."""
        count = state.round_step + 1
        mean = BETA_1 * state.mean + (1 - BETA_1) * slope
        square = BETA_2 * state.square + (1 - BETA_2) * slope.square()
        first, second = (-torch.expm1(count * math.log(b)) for b in (BETA_1, BETA_2))
        size = (square / per_image(second)).sqrt() + 1e-8
        w = state.w - self.rate * (mean / per_image(first)) / size
        return state._replace(w=w, mean=mean, square=square)

    def end_converged_rounds(self, state: State, objective: Tensor) -> State:
        """Ten times a round: where the objective [n] falls no more, the round is over."""
        look = state.round_step % max(1, self.length // 10) == 0
        stuck = look & (objective > self.improves * state.checked_objective)
        last = stuck | (state.round_step == self.length - 1)
        return self.update_constant(state, last)._replace(
            checked_objective=torch.where(look, objective, state.checked_objective),
            round_step=torch.where(last, 0, state.round_step + 1),
            finished_rounds=state.finished_rounds + last,
        )

    def update_constant(self, state: State, last: Tensor) -> State:
        """At the end of a round: cheaper after a win, dearer after a loss."""
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
    """[n, C, H, W]: the w of the clean image, pulled a little from the edge of the box."""
    return torch.atanh((2 * x - 1) * BOX_SHARE)


def begin_rounds(state: State, origin: Tensor) -> State:
    """Rows at place 0 begin their round at the w `origin` [n, C, H, W], Adam without a past."""
    fresh = state.round_step == 0
    rows = per_image(fresh)
    return state._replace(
        w=torch.where(rows, origin, state.w),
        mean=state.mean.masked_fill(rows, 0),
        square=state.square.masked_fill(rows, 0),
        checked_objective=state.checked_objective.masked_fill(fresh, math.inf),
        succeeded=state.succeeded & ~fresh,
    )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Nine rounds of a hundred steps."""
    yield CarliniWagner()

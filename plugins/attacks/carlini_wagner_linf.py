"""Carlini and Wagner's attack in Linf: Adam on the change beyond a bound that shrinks.

Carlini and Wagner 2017, arXiv:1608.04644, section VI.C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, StopRule, hookimpl, margin, per_row
from plugins.attacks.carlini_wagner import Adam, adam_step, tanh_space


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
    """[n]: c."""
    bound: Tensor
    """[n]: tau; only the part of a pixel's change beyond it counts."""
    failed_bound: Tensor
    """[n]: the largest tau that failed with every c; 0 until there is one."""
    round_step: Tensor
    """[n] int64: steps made in this round."""
    finished_rounds: Tensor
    """[n] int64: rounds that are over."""


@dataclass(frozen=True)
class CarliniWagnerLinf:
    """Carlini and Wagner's Linf attack, whose bound tau on the change of a pixel shrinks.

    It minimises c max(z_y - max_j z_j, -kappa) + sum_i max(|x'_i - x_i| - tau, 0) over
    x' = (1 + tanh w) / 2 (arXiv:1608.04644). A round is Adam with one c and one tau, from the last
    image of the round before. It ends at an adversarial image within tau, and tau becomes `shrink`
    times the distance of that image; after `length` steps without one, c doubles. Where c exceeds
    `highest` the published attack ends; here the interval from that tau to the distance is then
    halved, from the best image, until it is narrow.
    """

    name = "cw-linf"
    needs = Access.GRADIENTS
    norms = ("Linf",)
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1608.04644"
    summary = "Adam on the change beyond a bound, which shrinks by a tenth after each success."

    rounds: int = 80
    length: int = 100
    """Largest number of steps of a round."""
    rate: float = 0.01
    """Learning rate of Adam, in units of w."""
    price: float = 0.01
    """The first c."""
    highest: float = 0.5
    """The largest c; 20 in the published code. A pixel stays within tau only where c times its
    gradient of the margin is below 1, so that a large c finds nothing."""
    kappa: float = 0.0
    """Smallest margin of a successful image."""
    shrink: float = 0.9
    """Factor from the distance of an adversarial image to the next tau."""
    precision: float = 0.02
    """A row ends when no image within this share of its distance was found; 1: as published."""

    @property
    def steps(self) -> int:
        """All rounds at their full length."""
        return self.rounds * self.length

    def start(self, problem: Problem) -> State:
        """The clean image, the first c, a bound that no change exceeds."""
        zeros, zero = torch.zeros_like(problem.x), torch.zeros_like(problem.x[:, 0, 0, 0])
        count = zero.long()
        return State(
            problem.x, zero + math.inf, tanh_space(problem.x), zeros, zeros,
            zero + self.price, zero + 1, zero, count, count,
        )  # fmt: skip

    def step(self, problem: Problem, state: State) -> State:
        """Query one image of each row, then end its round or make one step of Adam."""
        image = (1 + state.w.tanh()) / 2
        result = problem.gradient(image, self.margin_loss)
        success = problem.reaches_goal(result.logits) & (result.loss >= self.kappa)
        distance = problem.ball.distance(image, problem.x)
        nearer = success & (distance < state.distance)
        state = state._replace(
            adv=torch.where(per_row(nearer), image, state.adv),
            distance=torch.where(nearer, distance, state.distance),
        )
        change = image - (1 + tanh_space(problem.x).tanh()) / 2
        beyond = change.sign() * (change.abs() > per_row(state.bound))
        gradient = beyond - per_row(state.constant) * result.gradient
        before = Adam(state.w, state.mean, state.square)
        count = state.round_step + 1
        after = adam_step(before, 2 * image * (1 - image) * gradient, count, self.rate)
        return self.end_rounds(state, after, success & (distance <= state.bound))

    def done(self, state: State) -> Tensor:
        """Whether tau is near the distance, c failed at once, or no round is left, [n] bool."""
        gap = state.distance - state.failed_bound
        narrow = state.distance.isfinite() & (gap <= self.precision * state.distance)
        hopeless = (state.failed_bound > 0) & state.distance.isinf()
        return narrow | hopeless | (state.finished_rounds >= self.rounds)

    def margin_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The margin [n] of logits [n, K], cut off at kappa."""
        return margin(logits, label).clamp_max(self.kappa)

    def end_rounds(self, state: State, after: Adam, within: Tensor) -> State:
        """End a round at an adversarial image within tau ([n] bool) or at its last step.

        `after` is Adam's next step, which is made in the other rows.
        """
        failed = ~within & (state.round_step == self.length - 1)
        last = within | failed
        constant = torch.where(failed, 2 * state.constant, state.constant)
        given_up = failed & (constant > self.highest)
        worst = torch.where(given_up, state.bound, state.failed_bound)
        middle = (worst + state.distance) / 2
        shrunk = torch.where(worst > 0, middle, self.shrink * state.distance)
        w = torch.where(per_row(within), state.w, after.w)
        return state._replace(
            w=torch.where(per_row(given_up), tanh_space(state.adv), w),
            mean=after.mean.masked_fill(per_row(last), 0),
            square=after.square.masked_fill(per_row(last), 0),
            constant=torch.where(given_up, self.highest / 4, constant),
            bound=torch.where(within | given_up, shrunk, state.bound),
            failed_bound=worst,
            round_step=torch.where(last, 0, state.round_step + 1),
            finished_rounds=state.finished_rounds + last,
        )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with rounds of a hundred steps."""
    yield CarliniWagnerLinf()

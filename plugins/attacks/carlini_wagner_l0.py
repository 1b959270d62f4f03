"""Carlini and Wagner's attack in L0: their L2 attack on fewer and fewer pixels.

Carlini and Wagner 2017, arXiv:1608.04644, section VI.B.
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

UNCHANGED = 1e-4  # change below which a pixel is taken out at once


class State(NamedTuple):
    """State of the search, one example a row."""

    adv: Tensor
    """[n, C, H, W]: the adversarial image of the fewest changed pixels; else the clean image."""
    distance: Tensor
    """[n]: the number of its changed pixels; infinite until there is one."""
    w: Tensor
    """[n, C, H, W]: the variable of Adam; an allowed pixel is (1 + tanh w) / 2."""
    mean: Tensor
    square: Tensor
    """[n, C, H, W]: Adam's running means of the gradient and of its square."""
    allowed: Tensor
    """[n, 1, H, W] bool: the pixels that may change."""
    constant: Tensor
    """[n]: c."""
    round_step: Tensor
    """[n] int64: steps made in this round."""
    finished_rounds: Tensor
    """[n] int64: rounds that are over."""


@dataclass(frozen=True)
class CarliniWagnerL0:
    """Carlini and Wagner's L0 attack: the L2 attack, which gives up pixels after each success.

    A round minimises ||x' - x||^2 + c max(z_y - max_j z_j, -kappa) over the allowed pixels by Adam,
    from the last image of the round before. It ends at an adversarial image x'; the pixels with the
    smallest |g_i (x'_i - x_i)|, g the gradient of the margin, then return to x for good
    (arXiv:1608.04644). After `length` steps without an adversarial image, c doubles. A row ends
    when c exceeds `highest`.
    """

    name = "cw-l0"
    needs = Access.GRADIENTS
    norms = ("L0",)
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1608.04644"
    summary = "Carlini and Wagner's L2 attack, which gives up pixels after each success."

    rounds: int = 60
    length: int = 100
    """Largest number of steps of a round."""
    rate: float = 0.05
    """Learning rate of Adam, in units of w."""
    price: float = 0.1
    """The first c."""
    highest: float = 100.0
    """The largest c."""
    kappa: float = 0.0
    """Smallest margin of a successful image."""
    given_up: float = 0.3
    """After a success this times the square root of the number of changed pixels are given up."""

    @property
    def steps(self) -> int:
        """All rounds at their full length."""
        return self.rounds * self.length

    def start(self, problem: Problem) -> State:
        """The clean image, the first c, all pixels allowed."""
        zeros, zero = torch.zeros_like(problem.x), torch.zeros_like(problem.x[:, 0, 0, 0])
        count = zero.long()
        return State(
            problem.x, zero + math.inf, tanh_space(problem.x), zeros, zeros,
            zeros[:, :1] == 0, zero + self.price, count, count,
        )  # fmt: skip

    def step(self, problem: Problem, state: State) -> State:
        """Query one image of each row, then end its round or make one step of Adam."""
        inside = (1 + state.w.tanh()) / 2
        image = torch.where(state.allowed, inside, problem.x)
        result = problem.gradient(image, margin)
        success = problem.reaches_goal(result.logits) & (result.loss >= self.kappa)
        distance = problem.ball.distance(image, problem.x)
        nearer = success & (distance < state.distance)
        state = state._replace(
            adv=torch.where(per_row(nearer), image, state.adv),
            distance=torch.where(nearer, distance, state.distance),
        )
        change = image - problem.x
        short = per_row(state.constant * (result.loss < self.kappa))
        moved = inside - (1 + tanh_space(problem.x).tanh()) / 2
        gradient = (2 * moved - short * result.gradient) * 2 * inside * (1 - inside)
        before = Adam(state.w, state.mean, state.square)
        after = adam_step(before, gradient * state.allowed, state.round_step + 1, self.rate)
        kept = self.kept_pixels(state.allowed, change, result.gradient)
        allowed = torch.where(per_row(success), kept, state.allowed)
        return self.end_rounds(state._replace(allowed=allowed), after, success)

    def done(self, state: State) -> Tensor:
        """Whether c is beyond its largest value or no round is left, [n] bool."""
        return (state.constant > self.highest) | (state.finished_rounds >= self.rounds)

    def kept_pixels(self, allowed: Tensor, change: Tensor, gradient: Tensor) -> Tensor:
        """The pixels [n, 1, H, W] bool that may change after a success.

        `allowed` [n, 1, H, W] may now; `change` and `gradient` are [n, C, H, W].
        """
        moved = allowed & (change.abs().amax(1, keepdim=True) >= UNCHANGED)
        score = (change * gradient).abs().sum(1, keepdim=True).masked_fill(~moved, math.inf)
        count = moved.flatten(1).sum(1)
        less = (self.given_up * count.sqrt()).floor().clamp_min(1)
        place = score.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
        return moved & (place >= less[:, None]).view_as(moved)

    def end_rounds(self, state: State, after: Adam, success: Tensor) -> State:
        """End a round at an adversarial image ([n] bool) or at its last step.

        `after` is Adam's next step, which is made in the other rows.
        """
        failed = ~success & (state.round_step == self.length - 1)
        last = success | failed
        return state._replace(
            w=torch.where(per_row(success), state.w, after.w),
            mean=after.mean.masked_fill(per_row(last), 0),
            square=after.square.masked_fill(per_row(last), 0),
            constant=torch.where(failed, 2 * state.constant, state.constant),
            round_step=torch.where(last, 0, state.round_step + 1),
            finished_rounds=state.finished_rounds + last,
        )


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with rounds of a hundred steps."""
    yield CarliniWagnerL0()

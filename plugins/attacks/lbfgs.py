"""L-BFGS attack: a box-constrained quasi-Newton search for the nearest image of a target class.

Szegedy et al. 2013, arXiv:1312.6199.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    Attack,
    Gradient,
    Loss,
    Problem,
    StopRule,
    cross_entropy,
    hookimpl,
    per_row,
    select_column,
)
from plugins.attacks._bounded_lbfgs import dot, remember, search_direction

SUFFICIENT = 1e-4  # share of the linear decrease that a step must reach (Armijo's condition)
ROUNDING = 1e-6  # share of the objective that float32 may lose
SMALLEST_SIZE = 2.0**-12  # of a step; a search that would need a smaller one has converged


class State(NamedTuple):
    """State of the search, one example a row."""

    adv: Tensor
    """[n, C, H, W]: the nearest adversarial image; the clean image until there is one."""
    distance: Tensor
    """[n]: its distance; infinite until there is one."""
    trial: Tensor
    """[n, C, H, W]: the image that the next step queries."""
    point: Tensor
    """[n, C, H, W]: the iterate of this round."""
    gradient: Tensor
    """[n, C, H, W]: the gradient of the objective at `point`."""
    direction: Tensor
    """[n, C, H, W]: the search direction from `point`."""
    steps: Tensor
    changes: Tensor
    """[n, m, C, H, W]: the last m steps and changes of the gradient, newest first; zero if none."""
    objective: Tensor
    """[n]: the objective at `point`."""
    size: Tensor
    """[n]: the share of `direction` that leads to `trial`."""
    adversarial: Tensor
    """[n] bool: `point` reaches the goal."""
    constant: Tensor
    low: Tensor
    high: Tensor
    """[n]: c, the largest c that succeeded (or 0), and the smallest c that failed (or infinity)."""
    round_step: Tensor
    """[n] int64: queries made in this round."""
    finished_rounds: Tensor
    """[n] int64: rounds that are over."""


@dataclass(frozen=True)
class LBFGS:
    """The L-BFGS attack: min over x' in [0, 1] of c ||x' - x||^2 + L(x', target) (arXiv:1312.6199).

    L is the cross-entropy. Each round minimises with one c from the clean image, by L-BFGS on the
    pixels that are free to move, with steps projected onto the box. A larger c gives a smaller
    distance. c changes tenfold until one round ends at an adversarial image and another does not;
    the interval of c is then halved.
    """

    name: str
    goals: tuple[str, ...]
    summary: str
    targets: int = 0
    """Number of target classes, one a restart, the most likely ones first; 0: the threat model's.
    """
    rounds: int = 20
    length: int = 40
    """Largest number of queries of a round."""
    memory: int = 5
    """m, the number of steps from which the inverse Hessian is estimated."""
    weight: float = 1.0
    """The first c."""
    precision: float = 5e-3
    """A row ends when its interval of c is narrower than this share of its upper end."""
    tolerance: float = 1e-5
    """A round has converged when its next step promises to decrease the objective by less than this
    share of c ||x' - x||^2."""

    needs = Access.GRADIENTS
    norms = ("L2",)
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1312.6199"

    @property
    def steps(self) -> int:
        """All rounds at their full length."""
        return self.rounds * self.length

    def restart_count(self, classes: int) -> int:
        """One restart, or one for each target class."""
        return min(self.targets, classes - 1) or 1

    def start(self, problem: Problem) -> State:
        """No adversarial image, the first c."""
        zeros, zero = torch.zeros_like(problem.x), torch.zeros_like(problem.x[:, 0, 0, 0])
        infinite, count = zero + math.inf, zero.long()
        none = zeros[:, None].repeat(1, self.memory, 1, 1, 1)
        return State(
            problem.x, infinite, problem.x, problem.x, zeros, zeros, none, none,
            infinite, zero, zero > 0, zero + self.weight, zero, infinite, count, count,
        )  # fmt: skip

    def step(self, problem: Problem, state: State) -> State:
        """Query the trial image of each row, then accept it or shorten the step."""
        state = begin_rounds(state, problem.x)
        result = problem.gradient(state.trial, self.loss(problem))
        success = problem.reaches_goal(result.logits)
        state = with_nearest(problem, state, success)
        following = move(state, *self.objective(problem, state, result), success)
        return self.end_rounds(following, self.converged(problem, following))

    def done(self, state: State) -> Tensor:
        """Whether the interval of c is narrow enough or no round is left, [n] bool."""
        narrow = state.high - state.low < self.precision * state.high
        return narrow | (state.finished_rounds >= self.rounds)

    def loss(self, problem: Problem) -> Loss:
        """The gain: minus the cross-entropy of the target class."""
        if not self.targets:
            return cross_entropy  # of the threat model's target, with its sign reversed there
        target = select_column(problem.other_classes, problem.restart)
        return lambda logits, _label: -cross_entropy(logits, target)

    def objective(self, problem: Problem, state: State, result: Gradient) -> tuple[Tensor, Tensor]:
        """c ||r||^2 + L at the trial image, [n], and its gradient [n, C, H, W]."""
        change = state.trial - problem.x
        value = state.constant * dot(change, change) - result.loss
        return value, 2 * per_row(state.constant) * change - result.gradient

    def converged(self, problem: Problem, state: State) -> Tensor:
        """Whether the next step promises too small a decrease, or none helps, [n] bool."""
        step, change = state.trial - state.point, state.point - problem.x
        promised = -dot(state.gradient, step)
        little = promised <= self.tolerance * state.constant * dot(change, change)
        return ((state.size == 1) & little) | (state.size < SMALLEST_SIZE)

    def end_rounds(self, state: State, converged: Tensor) -> State:
        """End the rounds that have converged ([n] bool) or reached their length."""
        last = converged | (state.round_step == self.length - 1)
        low = torch.where(last & state.adversarial, state.constant, state.low)
        high = torch.where(last & ~state.adversarial, state.constant, state.high)
        middle = torch.where(low == 0, state.constant / 10, (low + high) / 2)
        following = torch.where(high.isinf(), 10 * state.constant, middle)
        return state._replace(
            constant=torch.where(last, following, state.constant),
            low=low,
            high=high,
            round_step=torch.where(last, 0, state.round_step + 1),
            finished_rounds=state.finished_rounds + last,
        )


def begin_rounds(state: State, x: Tensor) -> State:
    """Start a round at the clean images x [n, C, H, W] where `round_step` is 0."""
    fresh = state.round_step == 0
    rows, lists = per_row(fresh), per_row(fresh, state.steps)
    return state._replace(
        trial=torch.where(rows, x, state.trial),
        point=torch.where(rows, x, state.point),
        gradient=state.gradient.masked_fill(rows, 0),
        steps=state.steps.masked_fill(lists, 0),
        changes=state.changes.masked_fill(lists, 0),
        objective=state.objective.masked_fill(fresh, math.inf),
    )


def with_nearest(problem: Problem, state: State, success: Tensor) -> State:
    """The state with trial images that reach the goal ([n] bool) nearer than the best so far."""
    distance = problem.ball.distance(state.trial, problem.x)
    nearer = success & (distance < state.distance)
    return state._replace(
        adv=torch.where(per_row(nearer), state.trial, state.adv),
        distance=torch.where(nearer, distance, state.distance),
    )


def move(state: State, objective: Tensor, gradient: Tensor, success: Tensor) -> State:
    """Accept trial images of a sufficient decrease; halve the step of the others.

    `objective` [n], `gradient` [n, C, H, W] and `success` [n] bool are those of the trial images.
    """
    step = state.trial - state.point
    first = state.round_step == 0
    accepted = first | decreases(state, step, objective, gradient)
    rows = per_row(accepted)
    change = gradient - state.gradient
    steps = remember(state.steps, step, accepted & ~first)
    changes = remember(state.changes, change, accepted & ~first)
    point = torch.where(rows, state.trial, state.point)
    gradient = torch.where(rows, gradient, state.gradient)
    direction = search_direction(point, gradient, steps, changes)
    length = torch.maximum(dot(direction, direction).sqrt(), 2 * state.constant).clamp_min(1)
    cautious = torch.where(first, 1 / length, 1)  # the distance alone curves by 2 c
    direction = torch.where(rows, per_row(cautious) * direction, state.direction)
    size = torch.where(accepted, 1, state.size / 2)
    return state._replace(
        trial=(point + per_row(size) * direction).clamp(0, 1),
        point=point,
        gradient=gradient,
        direction=direction,
        steps=steps,
        changes=changes,
        objective=torch.where(accepted, objective, state.objective),
        size=size,
        adversarial=torch.where(accepted, success, state.adversarial),
    )


def decreases(state: State, step: Tensor, objective: Tensor, gradient: Tensor) -> Tensor:
    """Whether a step [n, C, H, W] decreases the objective sufficiently, [n] bool.

    By Armijo's condition; or, where float32 does not resolve the decrease, by the slope at its end
    (the approximate Wolfe condition of Hager and Zhang 2005).
    """
    slope = dot(state.gradient, step)
    lower = objective <= state.objective + SUFFICIENT * slope
    level = objective <= state.objective + ROUNDING * state.objective.abs()
    return lower | (level & (dot(gradient, step) <= (2 * SUFFICIENT - 1) * slope))


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack on a declared target class, and on each of up to nine classes."""
    yield LBFGS(
        "lbfgs",
        ("targeted",),
        "Box-constrained L-BFGS on squared distance plus the cross-entropy of the target class.",
    )
    yield LBFGS(
        "lbfgs-t",
        ("untargeted", "nearest"),
        "The L-BFGS attack on each of up to nine target classes, one a restart.",
        targets=9,
    )

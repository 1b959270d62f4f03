"""APGD in L1: sparse steps whose sparsity follows that of the best iterate.

Croce and Hein 2021, arXiv:2103.01208.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    Attack,
    Gradient,
    Loss,
    Problem,
    cross_entropy,
    hookimpl,
    per_row,
    project_l1,
    select_column,
)
from plugins.attacks.apgd import targeted_dlr

RADII = (3, 2, 1)  # the search starts in a larger ball, where gradients lead further
STEP_SHARES = (0.3, 0.3, 0.4)  # of the steps, for each of RADII
CHECK_PERIOD = 0.04  # of a phase's steps, between two checks of the best point's sparsity
PROGRESS = 0.95  # of the pixels changed before: with fewer, the step size is reset
REDUCTION = 1.5  # changed pixels for each moved pixel; also the factor by which a step size shrinks
SMALLEST_RATE = 0.1  # of the first step size


class State(NamedTuple):
    """State of L1 APGD; the loss and the gradient at a point are known one step later."""

    adv: Tensor
    """[n, C, H, W]: `point`, its move scaled down into the declared ball."""
    point: Tensor
    """[n, C, H, W]: the next query, in the larger ball of the current phase."""
    best: Tensor
    best_gradient: Tensor
    """[n, C, H, W]: the point with the largest loss so far in this ball, and the gradient there."""
    best_loss: Tensor
    """[n]: the loss at `best`."""
    changed: Tensor
    """[n] int64: number of pixels in which `best` differed from the clean image at the last check.
    """
    rate: Tensor
    """[n]: the step size, in radii of the current ball."""


class Schedule(NamedTuple):
    """The schedule of a search, [steps + 1] each."""

    phase: Tensor
    """int64: index into RADII."""
    radii: Tensor
    """Radius of the ball of that phase, in radii of the declared ball."""
    first: Tensor
    """bool: the first step of its phase."""
    last: Tensor
    """bool: the last step of a phase, where another one follows."""
    check: Tensor
    """bool: the sparsity of the best point is checked; also on the first step of a phase."""


@dataclass(frozen=True)
class SparseAPGD:
    """APGD in L1: x_{t+1} = Proj(x_t + eta s / |s|_1), s the sign of g in its k largest entries.

    At each check k becomes the number of pixels in which the best point is changed, over 1.5 and
    rounded down; rounded up it could never fall from two to one. Where that number has fallen, eta
    is reset and the row returns to its best point; elsewhere eta shrinks. The steps are spent in
    balls of three, two and one radii, and each phase starts at the best point of the one before
    (arXiv:2103.01208).
    """

    name: str
    loss: Literal["cross-entropy", "targeted dlr"]
    """Loss to ascend: cross-entropy, or the targeted difference of logits ratio."""
    summary: str
    tries: int
    """Number of restarts, or of target classes with the most likely ones first."""
    steps: int = 100

    needs = Access.GRADIENTS
    norms = ("L1",)
    cite = "arXiv:2103.01208"

    @property
    def is_targeted(self) -> bool:
        """Whether each restart has one target class."""
        return self.loss == "targeted dlr"

    @property
    def goals(self) -> tuple[str, ...]:
        """Untargeted threat models only for the targeted form, which chooses the targets itself."""
        return ("untargeted",) if self.is_targeted else ()

    def restart_count(self, classes: int) -> int:
        """The number of restarts, or one for each target class."""
        return min(self.tries, classes - 1) if self.is_targeted else self.tries

    def start(self, problem: Problem) -> State:
        """Gaussian noise projected onto the largest ball, with no loss known."""
        x = problem.x
        noise = problem.normal("start", tuple(x.shape[1:]))
        point = problem.ball.scaled(RADII[0]).project(x + noise, x)
        adv, zero = x + (point - x) / RADII[0], torch.zeros_like(x[:, 0, 0, 0])
        return State(adv, point, point, 0 * point, zero - torch.inf, zero.long(), zero + 1)

    def step(self, problem: Problem, state: State) -> State:
        """Evaluate the gradient, adapt step size and sparsity at a check, and move."""
        result = problem.gradient(state.point, self._loss_function(problem))
        return self.advanced(problem, state, result, problem.t)

    def advanced(self, problem: Problem, state: State, result: Gradient, t: Tensor) -> State:
        """The state after step `t` [n], whose query at `point` had this result."""
        now = at_step(schedule(self.steps, t.device), t)
        better = now.first | (result.loss > state.best_loss)
        best = torch.where(per_row(better), state.point, state.best)
        gradient = torch.where(per_row(better), result.gradient, state.best_gradient)
        count = (best != problem.x).flatten(1).sum(1)
        sparser = now.check & ~now.first & (count < PROGRESS * state.changed)
        shrunk = torch.where(
            now.check, (state.rate / REDUCTION).clamp_min(SMALLEST_RATE), state.rate
        )
        rate = torch.where(sparser | now.first, 1, shrunk)
        changed = torch.where(now.check, count, state.changed)
        back = per_row(sparser)
        point = torch.where(back, best, state.point)
        direction = sparse_direction(torch.where(back, gradient, result.gradient), point, changed)
        size = problem.ball.radius * now.radii * rate
        moved = torch.where(per_row(now.last), best, point + per_row(size) * direction)
        best_loss = torch.where(better, result.loss, state.best_loss)
        return State(*self._projected(problem, moved, t), best, gradient, best_loss, changed, rate)

    def _loss_function(self, problem: Problem) -> Loss:
        if self.is_targeted:
            return targeted_dlr(select_column(problem.other_classes, problem.restart))
        return cross_entropy

    def _projected(self, problem: Problem, moved: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The image in the declared ball, and the point in the ball of the row's next step."""
        radii = schedule(self.steps, t.device).radii[t + 1]
        point = project_l1(moved, problem.x, problem.ball.radius * radii)
        # Ball and box are convex, so that a share of the move stays in both.
        share = problem.x + (point - problem.x) / per_row(radii)
        return torch.where(per_row(radii == 1), point, share), point


def sparse_direction(gradient: Tensor, adv: Tensor, changed: Tensor) -> Tensor:
    """A direction [n, C, H, W] of L1 norm 1: signs of the `changed` / 1.5 largest gradient entries.

    `gradient` and `adv` are [n, C, H, W], `changed` [n]. Pixels that would leave [0, 1] are
    skipped.
    """
    sign = gradient.sign()
    size = torch.where((adv + sign).clamp(0, 1) == adv, 0, gradient.abs()).flatten(1)
    most = (changed / REDUCTION).long().clamp(1, size.shape[1])
    least = size.sort(dim=1, descending=True).values.gather(1, most[:, None] - 1)
    chosen = (size >= least) & (size > 0)
    share = chosen / chosen.sum(1, keepdim=True).clamp_min(1)
    return sign * share.view_as(sign)


@functools.lru_cache(maxsize=16)
def schedule(steps: int, device: torch.device) -> Schedule:
    """The phases in order: all but the last have ceil(share * steps) steps."""
    lengths = [math.ceil(share * steps) for share in STEP_SHARES[:-1]]
    lengths.append(max(steps - sum(lengths), 0) + 1)
    phase = [place for place, length in enumerate(lengths) for _ in range(length)][: steps + 1]
    day = [t for length in lengths for t in range(length)][: steps + 1]
    period = [max(int(CHECK_PERIOD * lengths[place]), 1) for place in phase]
    last = [one != next_one for one, next_one in pairwise([*phase, phase[-1]])]
    check = [t % every == 0 for t, every in zip(day, period, strict=True)]
    radii = [float(RADII[place]) for place in phase]
    columns = (phase, radii, [t == 0 for t in day], last, check)
    return Schedule._make(torch.tensor(column, device=device) for column in columns)


def at_step(days: Schedule, t: Tensor) -> Schedule:
    """The schedule at step `t` [n] of each row, [n] each."""
    return Schedule._make(column[t] for column in days)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the two forms of the AutoAttack suite for L1."""
    yield SparseAPGD(
        "apgd-l1-ce", "cross-entropy", "Auto-PGD in L1 on the cross-entropy, five restarts.", 5
    )
    yield SparseAPGD(
        "apgd-l1-t",
        "targeted dlr",
        "Auto-PGD in L1 on the targeted difference of logits ratio, up to five target classes.",
        5,
    )

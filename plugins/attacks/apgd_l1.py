"""APGD in L1: steps along the steepest few pixels, as many as the best point has changed."""

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
    Loss,
    Problem,
    cross_entropy,
    hookimpl,
    per_image,
    select_column,
)
from plugins.attacks.apgd import targeted_dlr

RADII = (3, 2, 1)  # the search begins in a larger ball, in which the slope leads further
STEP_SHARES = (0.3, 0.3, 0.4)  # of the steps, in each of them
CHECK_PERIOD = 0.04  # of a phase's steps, between two looks at how sparse the best point is
PROGRESS = 0.95  # of the pixels changed before: fewer is progress, and the step grows again
REDUCTION = 1.5  # pixels changed for each pixel moved; and what a step shrinks by
SMALLEST_RATE = 0.1  # of the first step


class State(NamedTuple):
    """Where the climb of each row stands; what is said of a loss is known one question later."""

    adv: Tensor
    """[n, C, H, W]: `point` brought into the declared ball."""
    point: Tensor
    """[n, C, H, W]: what is asked next, in the ball of its phase."""
    best: Tensor
    best_gradient: Tensor
    """[n, C, H, W]: the highest point asked so far in this ball, and its gradient."""
    best_loss: Tensor
    """[n]: the loss at `best`."""
    changed: Tensor
    """[n] int64: pixels in which `best` differed from the clean image at the last look."""
    rate: Tensor
    """[n]: step length, in radii of the present ball."""


class Schedule(NamedTuple):
    """[steps + 1] each: what falls on each step."""

    phase: Tensor
    """int64: which of RADII."""
    radii: Tensor
    """The ball of that phase, in radii of the declared one."""
    first: Tensor
    """bool: the first step of its phase."""
    last: Tensor
    """bool: the last step of a phase that another follows."""
    check: Tensor
    """bool: a look at the sparsity of the best point; on a first step too."""


@dataclass(frozen=True)
class SparseAPGD:
    """x_{t+1} = Proj(x_t + eta s / |s|_1), s the sign of g in its k largest (arXiv:2103.01208).

    Every few steps k becomes the number of pixels in which the best point is changed, over 1.5 and
    rounded down; rounded up it could never fall from two to one. Where the number has fallen, eta
    is whole again and the row goes back to its best point; elsewhere eta shrinks. The steps are
    spent in balls of three, two and one radii, each begun from the best point of the last.
    """

    name: str
    climbs: Literal["cross-entropy", "dlr to a rival"]
    summary: str
    tries: int
    """Restarts, or rivals: the likeliest first."""
    steps: int = 100

    needs = Access.GRADIENTS
    norms = ("L1",)
    cite = "arXiv:2103.01208"

    @property
    def is_targeted(self) -> bool:
        """Each run climbs towards one rival class."""
        return self.climbs == "dlr to a rival"

    @property
    def goals(self) -> tuple[str, ...]:
        """Rivals are no use where the target is declared."""
        return ("untargeted",) if self.is_targeted else ()

    def restart_count(self, classes: int) -> int:
        """One a restart, or one a rival."""
        return min(self.tries, classes - 1) if self.is_targeted else self.tries

    def start(self, problem: Problem) -> State:
        """White noise brought into the largest ball, nothing known of it."""
        x = problem.x
        noise = problem.normal("start", tuple(x.shape[1:]))
        point = problem.ball.scaled(RADII[0]).project(x + noise, x)
        adv, zero = problem.ball.project(point, x), torch.zeros_like(x[:, 0, 0, 0])
        return State(adv, point, point, 0 * point, zero - torch.inf, zero.long(), zero + 1)

    def step(self, problem: Problem, state: State) -> State:
        """Ask, judge the step if this is a look, move."""
        answer = problem.gradient(state.point, self._loss(problem))
        now = at_step(schedule(self.steps, problem.t.device), problem.t)
        better = now.first | (answer.loss > state.best_loss)
        best = torch.where(per_image(better), state.point, state.best)
        slope = torch.where(per_image(better), answer.gradient, state.best_gradient)
        count = (best != problem.x).flatten(1).sum(1)
        thinner = now.check & ~now.first & (count < PROGRESS * state.changed)
        shrunk = torch.where(
            now.check, (state.rate / REDUCTION).clamp_min(SMALLEST_RATE), state.rate
        )
        rate = torch.where(thinner | now.first, 1, shrunk)
        changed = torch.where(now.check, count, state.changed)
        back = per_image(thinner)
        point = torch.where(back, best, state.point)
        uphill = sparse_direction(torch.where(back, slope, answer.gradient), point, changed)
        size = problem.ball.radius * now.radii * rate
        moved = torch.where(per_image(now.last), best, point + per_image(size) * uphill)
        height = torch.where(better, answer.loss, state.best_loss)
        return State(*self._projected(problem, moved), best, slope, height, changed, rate)

    def _loss(self, problem: Problem) -> Loss:
        if self.is_targeted:
            return targeted_dlr(select_column(problem.rivals, problem.restart))
        return cross_entropy

    def _projected(self, problem: Problem, moved: Tensor) -> tuple[Tensor, Tensor]:
        """The image in the declared ball, and the point in the ball of the row's next step."""
        phase = per_image(schedule(self.steps, problem.t.device).phase[problem.t + 1])
        adv = point = problem.ball.project(moved, problem.x)
        for place, radii in enumerate(RADII[:-1]):
            wide = problem.ball.scaled(radii).project(moved, problem.x)
            point = torch.where(phase == place, wide, point)
        return adv, point


def sparse_direction(gradient: Tensor, adv: Tensor, changed: Tensor) -> Tensor:
    """[n, C, H, W] of L1 norm 1: the sign of the gradient in its `changed` / 1.5 largest pixels.

    Pixels that would be pushed over the edge of the box are passed over.
    """
    way = gradient.sign()
    size = torch.where((adv + way).clamp(0, 1) == adv, 0, gradient.abs()).flatten(1)
    most = (changed / REDUCTION).long().clamp(1, size.shape[1])
    least = size.sort(dim=1, descending=True).values.gather(1, most[:, None] - 1)
    chosen = (size >= least) & (size > 0)
    share = chosen / chosen.sum(1, keepdim=True).clamp_min(1)
    return way * share.view_as(way)


@functools.lru_cache(maxsize=16)
def schedule(steps: int, device: torch.device) -> Schedule:
    """The phases in their order: all but the last take ceil(share * steps) steps."""
    lengths = [math.ceil(share * steps) for share in STEP_SHARES[:-1]]
    lengths.append(max(steps - sum(lengths), 0) + 1)
    phase = [place for place, length in enumerate(lengths) for _ in range(length)][: steps + 1]
    day = [t for length in lengths for t in range(length)][: steps + 1]
    period = [max(int(CHECK_PERIOD * lengths[place]), 1) for place in phase]
    last = [one != next_one for one, next_one in pairwise([*phase, phase[-1]])]
    look = [t % every == 0 for t, every in zip(day, period, strict=True)]
    radii = [float(RADII[place]) for place in phase]
    columns = (phase, radii, [t == 0 for t in day], last, look)
    return Schedule._make(torch.tensor(column, device=device) for column in columns)


def at_step(days: Schedule, t: Tensor) -> Schedule:
    """What falls on each row's step: [n] each."""
    return Schedule._make(column[t] for column in days)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """The two of the standard battery."""
    yield SparseAPGD(
        "apgd-l1-ce", "cross-entropy", "Sparse ascent on cross-entropy from five starts.", 5
    )
    yield SparseAPGD("apgd-l1-t", "dlr to a rival", "Sparse ascent towards up to five rivals.", 5)

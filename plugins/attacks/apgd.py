"""APGD: projected ascent with momentum that halves its own step where it stalls."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
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
    margin,
    margin_to,
    per_image,
    select_column,
)

MIN_LOGIT_SPREAD = 1e-12  # smallest spread of logits that a ratio is divided by


class State(NamedTuple):
    """Where the climb of each row stands; what is said of a loss is known one question later."""

    adv: Tensor
    previous: Tensor
    """[n, C, H, W]: the iterate before `adv`."""
    best: Tensor
    best_gradient: Tensor
    """[n, C, H, W]: the highest point asked so far, and its gradient."""
    best_loss: Tensor
    """[n]: the loss at `best`."""
    checkpoint_loss: Tensor
    """[n]: `height` at the last checkpoint."""
    last_loss: Tensor
    """[n]: the loss at `previous`."""
    increases: Tensor
    """[n] int64: steps since the last checkpoint that raised the loss."""
    halved: Tensor
    """[n] bool: the last checkpoint halved the step."""
    rate: Tensor
    """[n]: step length, in radii."""


@dataclass(frozen=True)
class APGD:
    """z = Proj(x_t + eta g), x_{t+1} = Proj(x_t + a (z - x_t) + (1 - a)(x_t - x_{t-1})).

    At a checkpoint a row halves eta and goes back to its best point when fewer than rho of its
    steps raised the loss, or when neither eta nor the best loss has changed since the checkpoint
    before (arXiv:2003.01690).
    """

    name: str
    climbs: Literal["cross-entropy", "dlr", "dlr to a rival"]
    summary: str
    goals: tuple[str, ...] = ()
    steps: int = 100
    rate: float = 2.0
    """First step length, in radii."""
    rho: float = 0.75
    momentum: float = 0.25
    """1 - a: the share of the last move in the next."""
    targets: int = 9
    """Rivals tried by the targeted form, the likeliest first."""

    needs = Access.GRADIENTS
    norms = ("Linf", "L2")
    cite = "arXiv:2003.01690"

    def restart_count(self, classes: int) -> int:
        """One, or one for each rival."""
        return min(self.targets, classes - 1) if self.climbs == "dlr to a rival" else 1

    def start(self, problem: Problem) -> State:
        """A random point of the set, nothing known of it."""
        adv = problem.ball.sample(problem.x, problem)
        zero = torch.zeros_like(adv[:, 0, 0, 0])
        low, high, none = zero - torch.inf, zero + torch.inf, zero.long()
        rate = zero + self.rate
        return State(adv, adv, adv, 0 * adv, low, low, high, none, none > 0, rate)

    def step(self, problem: Problem, state: State) -> State:
        """Ask, judge the step length if this is a checkpoint, move."""
        answer = problem.gradient(state.adv, self._loss(problem))
        state = with_evaluation(state, answer.gradient, answer.loss)
        window = checkpoint_intervals(self.steps, problem.t.device)[problem.t]
        stuck = ~state.halved & (state.best_loss <= state.checkpoint_loss)
        halve = (window > 0) & ((state.increases < self.rho * window) | stuck)
        back = per_image(halve)
        adv = torch.where(back, state.best, state.adv)
        slope = torch.where(back, state.best_gradient, answer.gradient)
        rate = torch.where(halve, state.rate / 2, state.rate)
        checkpoint = (window > 0) | (problem.t == 0)
        return state._replace(
            adv=self._next_iterate(problem, adv, state.previous, slope, rate),
            previous=adv,
            checkpoint_loss=torch.where(checkpoint, state.best_loss, state.checkpoint_loss),
            last_loss=torch.where(halve, state.best_loss, answer.loss),
            increases=torch.where(checkpoint, 0, state.increases),
            halved=torch.where(checkpoint, halve, state.halved),
            rate=rate,
        )

    def _loss(self, problem: Problem) -> Loss:
        if self.climbs == "dlr to a rival":
            return targeted_dlr(select_column(problem.rivals, problem.restart))
        return dlr if self.climbs == "dlr" else cross_entropy

    def _next_iterate(
        self, problem: Problem, adv: Tensor, previous: Tensor, slope: Tensor, rate: Tensor
    ) -> Tensor:
        """One step of `rate` [n] radii along the slope; from the second on with momentum."""
        ball, x = problem.ball, problem.x
        ahead = ball.ascend(adv, slope, rate, x)
        share = per_image(torch.where(problem.t == 0, 1, 1 - self.momentum))
        # At a row's first step `previous` is `adv` itself, so nothing is carried on.
        bent = torch.lerp(adv, ahead, share)
        bent.add_(adv - previous, alpha=self.momentum)
        return ball.project(bent, x)


def with_evaluation(state: State, gradient: Tensor, loss: Tensor) -> State:
    """The state that knows the answer at `adv`: its best point and its count of rises."""
    higher = loss > state.best_loss
    here = per_image(higher)
    best = torch.where(here, state.adv, state.best)
    slope = torch.where(here, gradient, state.best_gradient)
    height = torch.where(higher, loss, state.best_loss)
    rises = state.increases + (loss > state.last_loss)
    return state._replace(best=best, best_gradient=slope, best_loss=height, increases=rises)


@functools.lru_cache(maxsize=16)
def checkpoint_intervals(steps: int, device: torch.device) -> Tensor:
    """[steps + 1] int64: at a checkpoint the steps since the one before; elsewhere 0.

    Checkpoints are ceil(p_j n): p_1 = .22, then p_{j+1} - p_j = max(p_j - p_{j-1} - .03, .06).
    Hundredths are integers, so no rounding moves a checkpoint.
    """
    window, before, share, period = [0] * (steps + 1), 0, 22, 22
    while share <= 100:
        checkpoint = -(-share * steps // 100)
        window[checkpoint] += checkpoint - before
        period = max(period - 3, 6)
        before, share = checkpoint, share + period
    return torch.tensor(window, device=device)


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """The margin over z_(1) - z_(3), so that no scaling of the logits hides the slope.

    With three classes or fewer the margin alone: the ratio's targeted form needs a fourth logit.
    """
    if logits.shape[1] < 4:
        return margin(logits, label)
    top = sorted_logits(logits)
    return margin(logits, label) / (top[:, 0] - top[:, 2]).clamp_min(MIN_LOGIT_SPREAD)


def targeted_dlr(rival: Tensor) -> Loss:
    """(z_rival - z_label) over z_(1) - (z_(3) + z_(4)) / 2; undivided below four classes."""

    def ratio(logits: Tensor, label: Tensor) -> Tensor:
        gap = margin_to(rival)(logits, label)
        if logits.shape[1] < 4:
            return gap
        top = sorted_logits(logits)
        return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(MIN_LOGIT_SPREAD)

    return ratio


def sorted_logits(logits: Tensor) -> Tensor:
    """[n, K]: each row's logits, the largest first."""
    return logits.sort(dim=1, descending=True, stable=True).values


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """On three losses."""
    yield APGD("apgd-ce", "cross-entropy", "Ascent that halves its own step, on cross-entropy.")
    yield APGD("apgd-dlr", "dlr", "Ascent that halves its own step, on a ratio of logits.")
    yield APGD(
        "apgd-t",
        "dlr to a rival",
        "Ascent that halves its own step, towards up to nine rivals.",
        ("untargeted",),
    )

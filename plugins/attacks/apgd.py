"""APGD: projected gradient ascent with momentum and an adaptive step size.

Croce and Hein 2020, arXiv:2003.01690.
"""

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
    Gradient,
    Loss,
    Problem,
    cross_entropy,
    hookimpl,
    margin,
    margin_to,
    per_row,
    select_column,
)

MIN_LOGIT_SPREAD = 1e-12  # smallest denominator of the difference of logits ratio


class State(NamedTuple):
    """State of APGD; the loss and the gradient at an iterate are known one step later."""

    adv: Tensor
    """[n, ...]: the iterate, a point of the set."""
    previous: Tensor
    """[n, ...]: the iterate before `adv`."""
    best: Tensor
    best_gradient: Tensor
    """[n, ...]: the iterate with the largest loss so far, and the gradient there."""
    best_loss: Tensor
    """[n]: the loss at `best`."""
    checkpoint_loss: Tensor
    """[n]: `best_loss` at the last checkpoint."""
    last_loss: Tensor
    """[n]: the loss at `previous`."""
    increases: Tensor
    """[n] int64: steps since the last checkpoint that increased the loss."""
    halved: Tensor
    """[n] bool: the last checkpoint halved the step size."""
    rate: Tensor
    """[n]: the step size, in radii."""


@dataclass(frozen=True)
class APGD:
    """APGD: z = Proj(x_t + eta g), x_{t+1} = Proj(x_t + a (z - x_t) + (1 - a)(x_t - x_{t-1})).

    At a checkpoint a row halves eta and returns to its best iterate where fewer than rho of its
    steps increased the loss, or where neither eta nor the best loss has changed since the
    checkpoint before (arXiv:2003.01690).
    """

    name: str
    loss: Literal["cross-entropy", "dlr", "targeted dlr"]
    """Loss to ascend: cross-entropy, the difference of logits ratio, or its targeted form."""
    summary: str
    goals: tuple[str, ...] = ()
    steps: int = 100
    rate: float = 2.0
    """First step size, in radii."""
    rho: float = 0.75
    """Share of the steps between two checkpoints that must increase the loss."""
    momentum: float = 0.25
    """1 - a: the share of the last move in the next one."""
    targets: int = 9
    """Number of target classes of the targeted form, the most likely ones first."""

    needs = Access.GRADIENTS
    norms = ("Linf", "L2")
    coordinates = True
    cite = "arXiv:2003.01690"

    def restart_count(self, classes: int) -> int:
        """One restart, or one for each target class."""
        return min(self.targets, classes - 1) if self.loss == "targeted dlr" else 1

    def start(self, problem: Problem) -> State:
        """A random point of the set, with no loss known."""
        adv = problem.ball.sample(problem.x, problem)
        zero = torch.zeros_like(adv.flatten(1)[:, 0])
        low, high, none = zero - torch.inf, zero + torch.inf, zero.long()
        rate = zero + self.rate
        return State(adv, adv, adv, 0 * adv, low, low, high, none, none > 0, rate)

    def step(self, problem: Problem, state: State) -> State:
        """Evaluate the gradient, adapt the step size at a checkpoint, and move."""
        result = problem.gradient(state.adv, self._loss_function(problem))
        return self.advanced(problem, state, result, problem.t)

    def advanced(self, problem: Problem, state: State, result: Gradient, t: Tensor) -> State:
        """The state after step `t` [n], whose query at `adv` had this result."""
        state = with_evaluation(state, result.gradient, result.loss)
        window = checkpoint_intervals(self.steps, t.device)[t]
        stuck = ~state.halved & (state.best_loss <= state.checkpoint_loss)
        halve = (window > 0) & ((state.increases < self.rho * window) | stuck)
        back = per_row(halve, state.adv)
        adv = torch.where(back, state.best, state.adv)
        gradient = torch.where(back, state.best_gradient, result.gradient)
        rate = torch.where(halve, state.rate / 2, state.rate)
        checkpoint = (window > 0) | (t == 0)
        ahead = problem.ball.ascend(adv, gradient, rate, problem.x)
        return state._replace(
            adv=self._with_momentum(problem, adv, state.previous, ahead, t),
            previous=adv,
            checkpoint_loss=torch.where(checkpoint, state.best_loss, state.checkpoint_loss),
            last_loss=torch.where(halve, state.best_loss, result.loss),
            increases=torch.where(checkpoint, 0, state.increases),
            halved=torch.where(checkpoint, halve, state.halved),
            rate=rate,
        )

    def _loss_function(self, problem: Problem) -> Loss:
        if self.loss == "targeted dlr":
            return targeted_dlr(select_column(problem.other_classes, problem.restart))
        return dlr if self.loss == "dlr" else cross_entropy

    def _with_momentum(
        self, problem: Problem, adv: Tensor, previous: Tensor, ahead: Tensor, t: Tensor
    ) -> Tensor:
        """The step from `adv` to `ahead` [n, ...], with momentum where `t` [n] is not 0."""
        share = per_row(torch.where(t == 0, 1, 1 - self.momentum), adv)
        # At the first step `previous` is `adv` itself, so there is no momentum yet.
        moved = torch.lerp(adv, ahead, share)
        moved.add_(adv - previous, alpha=self.momentum)
        return problem.ball.project(moved, problem.x)


def with_evaluation(state: State, gradient: Tensor, loss: Tensor) -> State:
    """The state with the loss [n] and the gradient [n, ...] at `adv` taken into account."""
    higher = loss > state.best_loss
    here = per_row(higher, state.adv)
    best = torch.where(here, state.adv, state.best)
    best_gradient = torch.where(here, gradient, state.best_gradient)
    best_loss = torch.where(higher, loss, state.best_loss)
    increases = state.increases + (loss > state.last_loss)
    return state._replace(
        best=best, best_gradient=best_gradient, best_loss=best_loss, increases=increases
    )


@functools.lru_cache(maxsize=16)
def checkpoint_intervals(steps: int, device: torch.device) -> Tensor:
    """Steps since the checkpoint before at each checkpoint, elsewhere 0: [steps + 1] int64.

    Checkpoints are ceil(p_j n): p_1 = .22, then p_{j+1} - p_j = max(p_j - p_{j-1} - .03, .06). The
    shares are counted in hundredths, so that no rounding moves a checkpoint.
    """
    window, before, share, period = [0] * (steps + 1), 0, 22, 22
    while share <= 100:
        checkpoint = -(-share * steps // 100)
        window[checkpoint] += checkpoint - before
        period = max(period - 3, 6)
        before, share = checkpoint, share + period
    return torch.tensor(window, device=device)


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Difference of logits ratio [n] of logits [n, K]: the margin over z_(1) - z_(3).

    No scale of the logits changes it. With three classes or fewer it is the margin alone, since the
    targeted form needs a fourth logit.
    """
    if logits.shape[1] < 4:
        return margin(logits, label)
    top = sorted_logits(logits)
    return margin(logits, label) / (top[:, 0] - top[:, 2]).clamp_min(MIN_LOGIT_SPREAD)


def targeted_dlr(target: Tensor) -> Loss:
    """The loss (z_target - z_label) over z_(1) - (z_(3) + z_(4)) / 2 for a target [n] of each row.

    With three classes or fewer it is not divided.
    """

    def ratio(logits: Tensor, label: Tensor) -> Tensor:
        """The ratio [n] for logits [n, K]."""
        gap = margin_to(target)(logits, label)
        if logits.shape[1] < 4:
            return gap
        top = sorted_logits(logits)
        return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(MIN_LOGIT_SPREAD)

    return ratio


def sorted_logits(logits: Tensor) -> Tensor:
    """The logits of each row in descending order, [n, K]."""
    return logits.sort(dim=1, descending=True, stable=True).values


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register APGD on three losses."""
    yield APGD("apgd-ce", "cross-entropy", "Auto-PGD on the cross-entropy.")
    yield APGD("apgd-dlr", "dlr", "Auto-PGD on the difference of logits ratio.")
    yield APGD(
        "apgd-t",
        "targeted dlr",
        "Auto-PGD on the targeted difference of logits ratio, up to nine target classes.",
        ("untargeted",),
    )

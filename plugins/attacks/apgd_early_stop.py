"""APGD that stops where the margin says that an example will not fall.

First on the cross-entropy, then towards the classes whose decision boundaries are nearest to first
order (Melamed et al. 2024, arXiv:2407.02240; Croce and Hein 2020, arXiv:2003.01690).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    Attack,
    Gradient,
    Problem,
    StopRule,
    cross_entropy,
    hookimpl,
    margin,
    margin_to,
    per_row,
    select_column,
)
from plugins.attacks import apgd, apgd_l1
from plugins.attacks.apgd import APGD, MIN_LOGIT_SPREAD, dlr, targeted_dlr
from plugins.attacks.apgd_l1 import SparseAPGD
from plugins.attacks.apgd_nearest_targets import choose_loss, linearised_distance

SearchState: TypeAlias = apgd.State | apgd_l1.State

CROSS_ENTROPY, MEASURING, TARGETED = 0, 1, 2
"""Stages of a row: APGD on the cross-entropy, linearised distances, APGD towards the r-th nearest
class from TARGETED + r on."""


class Stage(NamedTuple):
    """Where each row is in its search, without the state of APGD."""

    adv: Tensor
    """[n, C, H, W]: the last iterate; once a row is over, the one with the largest margin."""
    nearest: Tensor
    """[n, C, H, W]: the iterate with the largest relative margin in any stage."""
    nearest_margin: Tensor
    """[n]: that margin."""
    stage: Tensor
    """[n] int64: CROSS_ENTROPY, MEASURING, or TARGETED + r."""
    made: Tensor
    """[n] int64: steps made in this stage."""
    best_margin: Tensor
    """[n]: the largest relative margin in this stage, in L1 in this ball of it."""
    distances: Tensor
    """[n, m]: linearised distance of each candidate class; infinite until it is measured."""
    first: Tensor
    """[n, C, H, W]: the random start, from which every stage begins."""


class State(NamedTuple):
    """The fields of `Stage`, and those of the state of APGD from `iterate` on."""

    adv: Tensor
    nearest: Tensor
    nearest_margin: Tensor
    stage: Tensor
    made: Tensor
    best_margin: Tensor
    distances: Tensor
    first: Tensor
    iterate: Tensor
    previous: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    checkpoint_loss: Tensor
    last_loss: Tensor
    increases: Tensor
    halved: Tensor
    rate: Tensor


class SparseState(NamedTuple):
    """The fields of `Stage`, and those of the state of L1 APGD from `iterate` on."""

    adv: Tensor
    nearest: Tensor
    nearest_margin: Tensor
    stage: Tensor
    made: Tensor
    best_margin: Tensor
    distances: Tensor
    first: Tensor
    iterate: Tensor
    point: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    changed: Tensor
    rate: Tensor


AnyState: TypeAlias = State | SparseState


@dataclass(frozen=True)
class EarlyStopAPGD:
    """APGD on the cross-entropy, then towards the nearest classes, each as long as it may succeed.

    A relative margin is the difference of logits ratio, max (z_t - z_y) over z_(1) - z_(3); with
    three classes or fewer the difference over that of the clean image. It is negative while an
    example is classified correctly. After the steps that `limits` names a row ends its search where
    its largest relative margin is below the limit.
    """

    name: str
    norms: tuple[str, ...]
    summary: str
    limits: tuple[tuple[int, float], ...]
    """(steps made, least relative margin to go on), in the order of the steps."""
    targets: int = 2
    """Number of target classes, the nearest ones first."""
    candidates: int = 9
    """Number of other classes whose distance is measured, the most likely ones first."""
    length: int = 100
    """Steps of APGD in each stage."""

    needs = Access.GRADIENTS
    goals = ("untargeted",)
    stop_rule = StopRule.CONVERGENCE
    cite = "arXiv:2407.02240"

    @property
    def steps(self) -> int:
        """The most steps of a row: all stages at full length, and the distances."""
        return self.candidates + (1 + self.targets) * self.length

    def start(self, problem: Problem) -> AnyState:
        """The random start of APGD, with no distance known."""
        search = self._search.start(problem)
        zero, none = torch.zeros_like(problem.y), torch.full_like(search.best_loss, -torch.inf)
        distances = torch.full_like(problem.other_classes, torch.inf, dtype=problem.x.dtype)
        place = Stage(
            search.adv, search.adv, none, zero, zero, none,
            distances[:, : self.candidates], query_of(search),
        )  # fmt: skip
        return joined(place, search)

    def step(self, problem: Problem, state: AnyState) -> AnyState:
        """One gradient of each row in its stage, and what follows from it."""
        place, search = separated(state)
        over, measuring = self.done(state), place.stage == MEASURING
        label = select_column(problem.other_classes, target_position(place))
        ascent = choose_loss(place.stage == CROSS_ENTROPY, cross_entropy, targeted_dlr(label))
        query = torch.where(per_row(measuring), problem.x, query_of(search))
        loss = choose_loss(measuring, margin_to(label), ascent)
        result = problem.gradient(query, loss, ~over)
        climbing = ~over & ~measuring
        place = self._with_margin(problem, place, search, result.logits, climbing)
        moved = self._moved(problem, search, result, place.made.clamp(0, self.length - 1))
        if measuring.any():
            place = with_distance(problem, place, result, measuring & ~over)
        place = place._replace(made=place.made + 1)
        return self._in_next_stage(place, choose_rows(climbing, moved, search), over)

    def done(self, state: AnyState) -> Tensor:
        """Whether every stage of a row is over, [n] bool."""
        return state.stage >= TARGETED + self.targets

    @property
    def _search(self) -> APGD | SparseAPGD:
        if "L1" in self.norms:
            return SparseAPGD("", "cross-entropy", "", 1, self.length)
        return APGD("", "cross-entropy", "", steps=self.length)

    def _moved(
        self, problem: Problem, search: SearchState, result: Gradient, t: Tensor
    ) -> SearchState:
        """The state after step `t` [n] of APGD."""
        own = self._search
        if isinstance(own, SparseAPGD):
            assert isinstance(search, apgd_l1.State)
            return own.advanced(problem, search, result, t)
        assert isinstance(search, apgd.State)
        return own.advanced(problem, search, result, t)

    def _with_margin(
        self, problem: Problem, place: Stage, search: SearchState, logits: Tensor, where: Tensor
    ) -> Stage:
        """The stage with the margin of the logits [n, K] of the rows `where` [n] bool."""
        found = torch.where(where, relative_margin(problem, logits), -torch.inf)
        before = place.best_margin
        if isinstance(search, apgd_l1.State):
            # A margin in a larger ball says nothing on the next smaller one.
            new_ball = apgd_l1.schedule(self.length, found.device).first
            before = torch.where(new_ball[place.made.clamp(0, self.length)], -torch.inf, before)
        nearer = found > place.nearest_margin
        return place._replace(
            nearest=torch.where(per_row(nearer), search.adv, place.nearest),
            nearest_margin=torch.where(nearer, found, place.nearest_margin),
            best_margin=torch.where(where, torch.maximum(found, before), place.best_margin),
        )

    def _in_next_stage(self, place: Stage, search: SearchState, over: Tensor) -> AnyState:
        """The state; where a stage has ended, at the beginning of the next one."""
        candidates = place.distances.shape[1]
        hopeless = torch.zeros_like(over)
        for steps, least in self.limits:
            hopeless = hopeless | ((place.made == steps) & (place.best_margin < least))
        climbed = hopeless | (place.made >= self.length)
        ended = torch.where(place.stage == MEASURING, place.made >= candidates, climbed) & ~over
        stage = place.stage + ended
        # With two classes there is one target.
        no_target = stage >= TARGETED + min(self.targets, candidates)
        place = place._replace(
            stage=torch.where(no_target, TARGETED + self.targets, stage),
            made=torch.where(ended, 0, place.made),
            best_margin=torch.where(ended, -torch.inf, place.best_margin),
        )
        if ended.any():
            search = choose_rows(ended, from_start(place, search), search)
        finished = per_row(place.stage >= TARGETED + self.targets)
        return joined(place._replace(adv=torch.where(finished, place.nearest, search.adv)), search)


def joined(place: Stage, search: SearchState) -> AnyState:
    """One state of both parts."""
    kind = State if isinstance(search, apgd.State) else SparseState
    return kind(*place, *search)


def separated(state: AnyState) -> tuple[Stage, SearchState]:
    """The parts of a state."""
    kind = apgd.State if isinstance(state, State) else apgd_l1.State
    first = len(Stage._fields)
    return Stage(*state[:first]), kind(*state[first:])


def with_distance(problem: Problem, place: Stage, result: Gradient, where: Tensor) -> Stage:
    """The stage with the distance that the rows `where` [n] bool have measured in this step."""
    distance = linearised_distance(problem, result.gradient, result.loss)
    column = torch.arange(place.distances.shape[1], device=where.device) == place.made[:, None]
    now = torch.where(where[:, None] & column, distance[:, None], place.distances)
    return place._replace(distances=now)


def query_of(search: SearchState) -> Tensor:
    """The next query [n, C, H, W] of APGD."""
    return search.point if isinstance(search, apgd_l1.State) else search.adv


def target_position(place: Stage) -> Tensor:
    """The position [n] int64 in `other_classes` of the class that a row measures or attacks."""
    last = place.distances.shape[1] - 1
    rank = (place.stage - TARGETED).clamp(0, last)
    nearest = select_column(place.distances.argsort(dim=1, stable=True), rank)
    return torch.where(place.stage == MEASURING, place.made.clamp(0, last), nearest)


def from_start(place: Stage, search: SearchState) -> SearchState:
    """The state of APGD at the random start, with no loss known."""
    zero, first = torch.zeros_like(place.best_margin), place.first
    low, none = zero - torch.inf, zero.long()
    if isinstance(search, apgd_l1.State):
        return apgd_l1.State(search.adv, first, first, 0 * first, low, none, zero + 1)
    high, rate = zero + torch.inf, zero + APGD("", "cross-entropy", "").rate
    return apgd.State(first, first, first, 0 * first, low, low, high, none, none > 0, rate)


def relative_margin(problem: Problem, logits: Tensor) -> Tensor:
    """max (z_t - z_y) [n] of logits [n, K], relative to the spread of the logits.

    With three classes or fewer relative to the same difference on the clean image.
    """
    if logits.shape[1] > 3:
        return dlr(logits, problem.y)
    clean = margin(problem.clean_logits, problem.y).abs().clamp_min(MIN_LOGIT_SPREAD)
    return margin(logits, problem.y) / clean


def choose_rows(where: Tensor, new: SearchState, old: SearchState) -> SearchState:
    """The state `new` in the rows `where` [n] bool, `old` elsewhere."""
    fields = (
        torch.where(per_row(where, field), field, before)
        for field, before in zip(new, old, strict=True)
    )
    return type(old)(*fields)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack for Linf and L2 and for L1."""
    summary = "Auto-PGD on the cross-entropy, then towards the two nearest classes; ends early."
    yield EarlyStopAPGD(
        "apgd-early-stop", ("Linf", "L2"), summary, ((9, -0.4), (21, -0.1), (40, -0.05))
    )
    yield EarlyStopAPGD(
        "apgd-l1-early-stop", ("L1",), summary, ((9, -0.3), (21, -0.1), (42, -0.1), (75, -0.05))
    )

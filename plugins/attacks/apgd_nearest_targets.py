"""Targeted APGD on the classes whose decision boundaries are nearest to first order.

Melamed et al. 2024, arXiv:2407.02240.
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
    Loss,
    Problem,
    hookimpl,
    margin_to,
    per_row,
    select_column,
)
from plugins.attacks import apgd, apgd_l1
from plugins.attacks._decision_boundary import dual_norm
from plugins.attacks.apgd import APGD, targeted_dlr
from plugins.attacks.apgd_l1 import SparseAPGD


class State(NamedTuple):
    """The linearised distances, and the state of APGD without its iterate."""

    adv: Tensor
    """[n, C, H, W]: the iterate of APGD; its random start while distances are measured."""
    distances: Tensor
    """[n, m]: linearised distance of each candidate class; infinite until it is measured."""
    previous: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    checkpoint_loss: Tensor
    last_loss: Tensor
    increases: Tensor
    halved: Tensor
    rate: Tensor
    """Fields of the state of APGD."""


class SparseState(NamedTuple):
    """The linearised distances, and the state of L1 APGD without its iterate."""

    adv: Tensor
    """[n, C, H, W]: the iterate of L1 APGD; its random start while distances are measured."""
    distances: Tensor
    """[n, m]: linearised distance of each candidate class; infinite until it is measured."""
    point: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    changed: Tensor
    rate: Tensor
    """Fields of the state of L1 APGD."""


AnyState: TypeAlias = State | SparseState


@dataclass(frozen=True)
class NearestTargetAPGD:
    """Targeted APGD, restart r towards the class with the r-th smallest linearised distance.

    The linearised distance of class t is (z_y - z_t) / ||grad(z_t - z_y)||* at the clean image,
    with the dual norm over the pixels that can move (arXiv:2407.02240). The first steps of a
    restart measure it, one candidate class in each step; then APGD ascends the targeted difference
    of logits ratio. A hundred classes cost no more than ten, because the candidates are the most
    likely ones.
    """

    name: str
    norms: tuple[str, ...]
    summary: str
    targets: int = 2
    """Number of target classes, the nearest ones first."""
    candidates: int = 9
    """Number of other classes whose distance is measured, the most likely ones first."""
    length: int = 100
    """Steps of APGD towards each target class."""

    needs = Access.GRADIENTS
    goals = ("untargeted",)
    cite = "arXiv:2407.02240"

    @property
    def steps(self) -> int:
        """Steps of one restart: those that measure, and those of APGD."""
        return self.candidates + self.length

    def restart_count(self, classes: int) -> int:
        """One restart for each target class."""
        return min(self.targets, self.candidates, classes - 1)

    def start(self, problem: Problem) -> AnyState:
        """The random start of APGD, with no distance known."""
        started = (self._sparse if "L1" in self.norms else self._dense).start(problem)
        distances = torch.full_like(problem.other_classes, torch.inf, dtype=problem.x.dtype)
        return with_distances(started, distances[:, : self.candidates])

    def step(self, problem: Problem, state: AnyState) -> AnyState:
        """Measure the distance of one candidate class, or make one step of APGD."""
        measured = min(self.candidates, problem.classes - 1)
        measuring, t = problem.t < measured, problem.t - measured
        target = torch.where(measuring, problem.t, self._nearest(problem, state))
        label = select_column(problem.other_classes, target)
        loss = choose_loss(measuring, margin_to(label), targeted_dlr(label))
        # With fewer classes than candidates the last steps are not needed.
        acting = t < self.length
        iterate = state.point if isinstance(state, SparseState) else state.adv
        result = problem.gradient(torch.where(per_row(measuring), problem.x, iterate), loss, acting)
        moved = self._moved(problem, state, result, t.clamp(0, self.length - 1))
        distance = linearised_distance(problem, result.gradient, result.loss)
        column = torch.arange(measured, device=target.device) == target[:, None]
        now = torch.where(measuring[:, None] & column, distance[:, None], state.distances)
        climbing = acting & ~measuring
        return map_rows(climbing, moved, state)._replace(distances=now)

    def _nearest(self, problem: Problem, state: AnyState) -> Tensor:
        """The candidate [n] int64 that this restart attacks; the more likely one where two tie."""
        return select_column(state.distances.argsort(dim=1, stable=True), problem.restart)

    @property
    def _sparse(self) -> SparseAPGD:
        return SparseAPGD("", "targeted dlr", "", 1, self.length)

    @property
    def _dense(self) -> APGD:
        return APGD("", "targeted dlr", "", steps=self.length)

    def _moved(self, problem: Problem, state: AnyState, result: Gradient, t: Tensor) -> AnyState:
        """The state after step `t` [n] of APGD."""
        if isinstance(state, SparseState):
            sparse = apgd_l1.State(state.adv, *state[2:])
            after = self._sparse.advanced(problem, sparse, result, t)
            return with_distances(after, state.distances)
        dense = apgd.State(state.adv, *state[2:])
        return with_distances(self._dense.advanced(problem, dense, result, t), state.distances)


def with_distances(state: apgd.State | apgd_l1.State, distances: Tensor) -> AnyState:
    """A state of APGD with linearised distances [n, m]."""
    kind = State if isinstance(state, apgd.State) else SparseState
    return kind(state.adv, distances, *state[1:])


def linearised_distance(problem: Problem, slope: Tensor, gap: Tensor) -> Tensor:
    """-gap / ||slope||* [n] at the clean images, with slope [n, C, H, W] and gap [n] = z_t - z_y.

    Zero where the gap is not negative, infinite where no pixel that can move has a slope.
    """
    dual = dual_norm(slope, problem.ball.steepest(slope, problem.x))
    return torch.where(dual > 0, (-gap).clamp_min(0) / dual, torch.inf)


def choose_loss(where: Tensor, one: Loss, other: Loss) -> Loss:
    """The loss that is `one` in the rows `where` [n] bool and `other` elsewhere."""
    return lambda logits, label: torch.where(where, one(logits, label), other(logits, label))


def map_rows(where: Tensor, new: AnyState, old: AnyState) -> AnyState:
    """The state `new` in the rows `where` [n] bool, `old` elsewhere."""
    fields = (
        torch.where(per_row(where, field), field, before)
        for field, before in zip(new, old, strict=True)
    )
    return type(old)(*fields)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack on the two nearest classes, for Linf and L2 and for L1."""
    summary = "Auto-PGD towards the two classes with the nearest linearised decision boundaries."
    yield NearestTargetAPGD("apgd-t-nearest", ("Linf", "L2"), summary)
    yield NearestTargetAPGD("apgd-l1-t-nearest", ("L1",), summary)

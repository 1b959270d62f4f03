"""The Problem as an attack gets it: copies of the harness's data, and checks of what it returns."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from bench.core.errors import PluginError
from bench.engine.values import checked_state
from bench.plugin import Attack, Gradient, Jacobian, Problem, State
from bench.plugin.losses import Loss
from bench.threats.norms import PerturbationSet


class AttackView:
    """The Problem of `bench.plugin` over rows that stay out of its reach, for one step.

    Every tensor is a copy that the attack may write into: the engine tracks, and the referee
    judges, on the rows themselves, and the next step gets new copies.

    Args:
        problem: the rows.
    """

    def __init__(self, problem: Problem) -> None:
        self.rows = problem

    @cached_property
    def x(self) -> Tensor:
        """A copy of the clean images [n, C, H, W]."""
        return self.rows.x.clone()

    @property
    def y(self) -> Tensor:
        """A copy of the labels [n] int64."""
        return self.rows.y.clone()

    @property
    def target(self) -> Tensor:
        """A copy of the declared target classes [n] int64, -1 without."""
        return self.rows.target.clone()

    @property
    def t(self) -> Tensor:
        """A copy of the number of steps [n] int64 that each row has made."""
        return self.rows.t.clone()

    @property
    def restart(self) -> Tensor:
        """A copy of the number of the restart [n] int64."""
        return self.rows.restart.clone()

    @property
    def ball(self) -> PerturbationSet:
        """The perturbation set."""
        return self.rows.ball

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return self.rows.classes

    @property
    def clean_logits(self) -> Tensor:
        """A copy of the logits [n, K] of the clean images."""
        return self.rows.clean_logits.clone()

    @property
    def other_classes(self) -> Tensor:
        """A copy of the other classes [n, K - 1], largest clean logit first."""
        return self.rows.other_classes.clone()

    def gradient(self, adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        """Gradient [n, ...], loss [n] and logits [n, K] at points `adv` [n, ...]."""
        return self.rows.gradient(adv, loss, where)

    def jacobian(
        self,
        adv: Tensor,
        classes: Tensor,
        where: Tensor | None = None,
        *,
        minus: Tensor | None = None,
    ) -> Jacobian:
        """Gradients [n, k, C, H, W] of the logits `classes` [n, k], and logits [n, K]."""
        return self.rows.jacobian(adv, classes, where, minus=minus)

    def logits(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """Logits [n, K] at points `adv` [n, ...]."""
        return self.rows.logits(adv, where)

    def labels(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """Labels [n] int64 at points `adv` [n, ...]."""
        return self.rows.labels(adv, where)

    def reaches_goal(self, answer: Tensor) -> Tensor:
        """[n] bool: logits [n, K] or labels [n] reach the goal of the threat model."""
        return self.rows.reaches_goal(answer)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform keyed random numbers [n, *shape] in [0, 1)."""
        return self.rows.uniform(name, shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal keyed random numbers [n, *shape]."""
        return self.rows.normal(name, shape)

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Keyed random integers [n, *shape] in [0, high)."""
        return self.rows.integers(name, high, shape)


def view_of(rows: Problem) -> Problem:
    """The rows as their attack gets them."""
    view: Any = AttackView(rows)  # its attributes are read-only, unlike those of the protocol
    problem: Problem = view
    return problem


def points_in(rows: Problem) -> Tensor:
    """The points [n, ...] of the clean images of rows in their perturbation set."""
    return rows.ball.start(rows.x)


def started(attack: Attack, rows: Problem) -> State:
    """The state before the first step of `rows`, which come from `BatchProblem.at_start`.

    Raises:
        PluginError: the attack returned no state of these rows.
    """
    state = attack.start(view_of(rows))
    return checked_state(state, points_in(rows), f"{attack.name}.start")


def stepped(attack: Attack, rows: Problem, state: State) -> State:
    """The state after one more step of all rows.

    Raises:
        PluginError: the attack returned no state of these rows.
    """
    after = attack.step(view_of(rows), state)
    checked = checked_state(after, points_in(rows), f"{attack.name}.step")
    if type(checked) is not type(state):
        raise PluginError(
            f"{attack.name}.step turned a state of type {type(state).__name__} into "
            f"{type(checked).__name__}; return the same type as start."
        )
    return checked

"""Contract of an attack: `start` and `step` over explicit state, and the problem that they see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

from torch import Tensor

from bench.plugin.external import (
    EXTERNAL_BATCH,
    ExternalAttack,
)
from bench.plugin.losses import Loss
from bench.threats.access import Access
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import RandomNumbers

State: TypeAlias = Any
"""A tensor [n, ...] of images, or a NamedTuple of tensors whose first field `adv` is that."""


class StopRule(StrEnum):
    """When a row of an attack has nothing more to do."""

    FIRST_SUCCESS = "first success"
    """The first verified success ends it (all attacks in a fixed ball)."""
    CONVERGENCE = "convergence"
    """`done(state)` ends it; success alone does not (attacks that shrink their perturbation)."""
    NEVER = "never"
    """Only its last step ends it."""


class Gradient(NamedTuple):
    """The answer to `problem.gradient`."""

    gradient: Tensor
    """[n, C, H, W]: uphill is towards the goal, also on targeted boards."""
    loss: Tensor
    """[n]: larger is better for the attacker."""
    logits: Tensor
    """[n, K]; a `joint` attack finds the rejection score as column K."""


class Jacobian(NamedTuple):
    """The answer to `problem.jacobian`."""

    rows: Tensor
    """[n, k, C, H, W]: the gradient of each asked logit, or difference."""
    logits: Tensor
    """[n, K]."""


class Problem(RandomNumbers, Protocol):
    """What an attack sees of one batch of rows; each row is one example in one run.

    Rows are independent: whatever an attack computes for a row may depend on that row alone.
    Every question takes `where` [n] bool: only those rows are charged, the others' answers are
    not to be used.
    """

    x: Tensor
    """[n, C, H, W] clean images."""
    y: Tensor
    """[n] int64: the true label; on targeted boards still the true label."""
    target: Tensor
    """[n] int64: the declared target on targeted boards; -1 elsewhere."""
    ball: PerturbationSet
    """The perturbation set: `sample`, `steepest`, `project`, `distance`, `contains`, `radius`."""
    t: Tensor
    """[n] int64: how many steps this row has made in this run."""
    restart: Tensor
    """[n] int64: which restart or target this is, from 0."""
    classes: int

    @property
    def clean_logits(self) -> Tensor:
        """[n, K] of the clean images; needs scores. Costs nothing: the clean pass is shared."""

    @property
    def other_classes(self) -> Tensor:
        """[n, K - 1]: the other classes, the likeliest on the clean image first; needs scores."""

    def gradient(self, adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        """One forward and one gradient a row. `loss` gets the label, or the declared target."""

    def jacobian(
        self,
        adv: Tensor,
        classes: Tensor,
        where: Tensor | None = None,
        *,
        minus: Tensor | None = None,
    ) -> Jacobian:
        """One forward and k gradients a row, of the logits `classes` [n, k].

        With `minus` [n] int64, of their differences to the logit of that class.
        """

    def logits(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """[n, K]; one forward a row."""

    def labels(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """[n] int64; one forward a row."""

    def reaches_goal(self, answer: Tensor) -> Tensor:
        """[n] bool: do these logits [n, K] or labels [n] reach the goal of the board?"""

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] keyed int64 in [0, high)."""


class Attack(Protocol):
    """A start and a step over explicit state; the harness owns everything else.

    Optional: `cite`, `summary`, `restart_count(classes) -> int` (restarts or targets; a row begins restart
    r + 1 only if restart r left it unbroken), `stop_rule` (a `StopRule`), `done(state) -> [n] bool`,
    `minimises` (True when smaller perturbations are the aim), `norms` (names of the sets it can
    work in), `goals` (goals it can serve), `source` (`"surrogate"`: queries the
    surrogate model instead),
    `stays(before, after) -> [n] bool` (the step between these states has changed nothing: a search
    that asks one question a step may then be asked for several steps of a row at once),
    `joint` (True where it goes for classifier and detector at once: it meets rejecting defenses
    only, and its losses and answers have the rejection score as column K),
    `samples` (True where it draws points without following an answer of the model).
    """

    needs: Access

    @property
    def name(self) -> str:
        """Lower case, digits, '.', '_', '-'; unique."""

    @property
    def steps(self) -> int:
        """Steps of one run; step s leaves the iterate after s questions."""

    def start(self, problem: Problem) -> State:
        """The state of newly arrived rows: arithmetic only, nothing is asked of the defense."""

    def step(self, problem: Problem, state: State) -> State:
        """The next state of all rows."""


OPTIONAL_METHODS = ("restart_count", "done", "stays", "prepare")
"""What an attack may define beside what it must."""


@dataclass(frozen=True)
class Traits:
    """An attack's optional attributes, with what their absence means."""

    cite: str
    summary: str
    stop_rule: StopRule
    minimises: bool
    norms: tuple[str, ...]
    """Empty: every set."""
    goals: tuple[str, ...]
    """Empty: every goal."""
    source: str
    joint: bool
    """It goes for classifier and detector at once."""
    samples: bool
    """It draws points without following an answer of the model."""
    rows: int
    """Of a `ExternalAttack`: how many examples it is offered at once; 0 for all."""

    @classmethod
    def of(cls, attack: Attack | ExternalAttack) -> Traits:
        """Read them from any object."""
        return cls(
            cite=getattr(attack, "cite", ""),
            summary=getattr(attack, "summary", ""),
            stop_rule=getattr(attack, "stop_rule", StopRule.FIRST_SUCCESS),
            minimises=getattr(attack, "minimises", False),
            norms=tuple(getattr(attack, "norms", ())),
            goals=tuple(getattr(attack, "goals", ())),
            source=getattr(attack, "source", ""),
            joint=getattr(attack, "joint", False),
            samples=getattr(attack, "samples", False),
            rows=getattr(attack, "rows", EXTERNAL_BATCH),
        )

    @staticmethod
    def is_external(attack: Attack | ExternalAttack) -> TypeGuard[ExternalAttack]:
        """Whether it has a `run` of its own instead of `start` and `step`."""
        return hasattr(attack, "run") and not hasattr(attack, "step")

    @staticmethod
    def restart_count(attack: Attack | ExternalAttack, classes: int) -> int:
        """Returns the number of restarts that a row may need."""
        count = getattr(attack, "restart_count", None)
        return 1 if count is None else int(count(classes))

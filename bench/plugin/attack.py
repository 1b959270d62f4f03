"""Contract of an attack: `start` and `step` over explicit state, and the problem that they see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

from torch import Tensor

from bench.plugin.external import EXTERNAL_BATCH, ExternalAttack
from bench.plugin.losses import Loss
from bench.threats.access import Access
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import RandomNumbers

State: TypeAlias = Any
"""Points [n, ...], or a NamedTuple of tensors [n, ...] with the points first, as `adv`.

In a norm ball the points are images [n, C, H, W].
"""


class StopRule(StrEnum):
    """When an attack stops working on an example, before its last step."""

    FIRST_SUCCESS = "first success"
    """At the first verified success (for attacks in a fixed ball)."""
    CONVERGENCE = "convergence"
    """Where `done(state)` is True; not at a success (for attacks that minimise a perturbation)."""
    NEVER = "never"
    """Never: all steps are made."""


class Gradient(NamedTuple):
    """The result of `problem.gradient`."""

    gradient: Tensor
    """[n, ...] of the attacker's loss: ascent leads towards the goal, targeted ones too."""
    loss: Tensor
    """[n]: larger is better for the attacker."""
    logits: Tensor
    """[n, K]; for a `joint` attack column K is the rejection score."""


class Jacobian(NamedTuple):
    """The result of `problem.jacobian`."""

    rows: Tensor
    """[n, k, ...]: the gradient of each requested logit, or of its difference."""
    logits: Tensor
    """[n, K]."""


class Problem(RandomNumbers, Protocol):
    """What an attack sees of a batch: each row is one example in one restart.

    What an attack computes for a row may depend on that row alone: the engine removes finished
    examples from the batch and adds new ones between steps. Each query takes `where` [n] bool: only
    those rows are queried and counted, and the results of the others must not be used. A query
    beyond the threat model's access, or beyond the attack's `needs`, raises PluginError.
    """

    x: Tensor
    """[n, C, H, W]: the clean images."""
    y: Tensor
    """[n] int64: the true labels, also for a targeted goal."""
    target: Tensor
    """[n] int64: the declared target classes of a targeted goal; -1 for other goals."""
    ball: PerturbationSet
    """The perturbation set: `start`, `sample`, `steepest`, `project`, `contains`, `radius`."""
    t: Tensor
    """[n] int64: number of steps made for this row, as the t of a step-size schedule."""
    restart: Tensor
    """[n] int64: the number of this restart, or of the attacked target class, from 0."""
    classes: int
    """K, the number of classes."""

    @property
    def clean_logits(self) -> Tensor:
        """Logits [n, K] of the clean images; needs scores. Not counted as a query."""

    @property
    def other_classes(self) -> Tensor:
        """[n, K - 1]: all classes but the label, by clean logit, largest first; needs scores."""

    def gradient(self, adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        """Gradients [n, ...] of a loss at points [n, ...], with losses and logits.

        In a parametric set the gradient of the image is pulled back through `ball.apply`.

        `loss` is called with the label; for a targeted goal with the target, and its sign reversed.
        Costs one query and one gradient evaluation a row.
        """

    def jacobian(
        self,
        adv: Tensor,
        classes: Tensor,
        where: Tensor | None = None,
        *,
        minus: Tensor | None = None,
    ) -> Jacobian:
        """Gradients [n, k, ...] of the logits `classes` [n, k] at points [n, ...].

        With `minus` [n] int64, of their differences to the logit of that class. Costs one query and
        k gradient evaluations a row.
        """

    def logits(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """Logits [n, K] of the images of points [n, ...]. Costs one query a row."""

    def labels(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """Predicted labels [n] int64 of the images of points [n, ...]. Costs one query a row."""

    def reaches_goal(self, answer: Tensor) -> Tensor:
        """Whether logits [n, K] or labels [n] reach the threat model's goal, bool [n]."""

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform int64 [n, *shape] in [0, high), keyed like `uniform`."""


class Attack(Protocol):
    """An attack as `start` and `step` over explicit state; the engine owns everything else.

    Optional attributes, whose defaults are those of `Traits`: `cite`, `summary`, `stop_rule`,
    `minimises`, `norms`, `coordinates`, `goals`, `source`, `eot_draws`, `examples`, `joint`,
    `samples`, `written_for`.

    Optional methods:

    * `restart_count(classes) -> int`: the number of restarts or targets; 1 without it. Restart
      r + 1 is made only for examples that restart r did not break.
    * `done(state) -> [n] bool`: which rows have converged; for `StopRule.CONVERGENCE`.
    * `stays(before, after) -> [n] bool`: which rows a step left unchanged. A search that makes one
      query a step and often rejects it can then have several steps of a row evaluated in one batch.
    """

    needs: Access
    """The least access to the defense with which the attack works."""

    @property
    def name(self) -> str:
        """Unique name of lower-case letters, digits, '.', '_' and '-'."""

    @property
    def steps(self) -> int:
        """Number of steps of one restart."""

    def start(self, problem: Problem) -> State:
        """The state before the first step. Must not query the defense."""

    def step(self, problem: Problem, state: State) -> State:
        """The state after one more step of all rows; `state` itself must stay unchanged."""


OPTIONAL_METHODS = ("restart_count", "done", "stays", "prepare")
"""The optional methods of an attack; `prepare` of an external attack."""


OTHER_BALLS = ("L0", "Lp", "perceptual")
"""Names of the balls without `onto`, in which attacks apply that name them or move points alone."""


@dataclass(frozen=True)
class Traits:
    """The optional attributes of an attack; `Traits.of` has the defaults."""

    cite: str
    """Source, as `arXiv:1706.06083`."""
    summary: str
    """One sentence for lists."""
    stop_rule: StopRule
    """Default: the first success."""
    minimises: bool
    """Whether it looks for the smallest perturbation; its iterates may then leave the ball."""
    norms: tuple[str, ...]
    """Names of the sets it supports, as `Linf`. Empty: every convex norm ball."""
    coordinates: bool
    """Whether it also works in every parametric set, and in `L0`, `Lp` and the perceptual ball.

    It then begins at `ball.start(problem.x)` or `ball.sample`, moves points of any shape [n, ...]
    by the methods of the set alone, and never takes a point for an image.
    """
    goals: tuple[str, ...]
    """Kinds of goals it supports: `untargeted`, `targeted`, `nearest`. Empty: every goal."""
    source: str
    """Role of the surrogate model that a transfer attack queries instead of the defense.

    `surrogate`: the one that the defense declares; `learned`, `learned-strong`: one that is learned
    from the labels of the defense; any other role: the defense that the protocol names for it.
    """
    eot_draws: int
    """Draws of a random defense over which each of its gradients is averaged (EOT).

    0: the number that the defense declares, 1 for a deterministic one.
    """
    examples: int
    """Number of examples it runs on, the first ones; 0: all."""
    joint: bool
    """Whether it attacks classifier and detector of a rejecting defense together.

    It is then evaluated on rejecting defenses only, and its losses and answers have the rejection
    score as column K.
    """
    samples: bool
    """Whether it samples points independently of the model's answers, as random noise."""
    written_for: tuple[str, ...]
    """Names of the defenses that it was written for; a defense without such an attack is marked."""
    rows: int
    """Of an external attack: how many examples one call of `run` gets; 0 for all."""

    @classmethod
    def of(cls, attack: Attack | ExternalAttack) -> Traits:
        """The attributes of an attack, with a default for each that it does not have."""
        return cls(
            cite=getattr(attack, "cite", ""),
            summary=getattr(attack, "summary", ""),
            stop_rule=getattr(attack, "stop_rule", StopRule.FIRST_SUCCESS),
            minimises=getattr(attack, "minimises", False),
            norms=tuple(getattr(attack, "norms", ())),
            coordinates=getattr(attack, "coordinates", False),
            goals=tuple(getattr(attack, "goals", ())),
            source=getattr(attack, "source", ""),
            eot_draws=getattr(attack, "eot_draws", 0),
            examples=getattr(attack, "examples", 0),
            joint=getattr(attack, "joint", False),
            samples=getattr(attack, "samples", False),
            written_for=tuple(getattr(attack, "written_for", ())),
            rows=getattr(attack, "rows", EXTERNAL_BATCH),
        )

    def why_not_in(self, ball: PerturbationSet) -> str:
        """Why the attack does not work in a perturbation set; empty where it does."""
        other = ball.parametric or ball.name in OTHER_BALLS
        if ball.name in self.norms or (self.coordinates and other):
            return ""
        if self.norms:
            return f"works in {', '.join(self.norms)}"
        if ball.parametric:
            return "works in norm balls, whose points are images"
        return "works in convex norm balls" if other else ""

    @staticmethod
    def is_external(attack: Attack | ExternalAttack) -> TypeGuard[ExternalAttack]:
        """Whether it is an external attack: `run` instead of `start` and `step`."""
        return hasattr(attack, "run") and not hasattr(attack, "step")

    @staticmethod
    def has_steps(attack: object) -> bool:
        """Whether it makes steps: it is neither external nor shared."""
        return hasattr(attack, "step")

    @staticmethod
    def restart_count(attack: Attack | ExternalAttack, classes: int) -> int:
        """Number of restarts (or targets) that an attack makes at most per example."""
        count = getattr(attack, "restart_count", None)
        return 1 if count is None else int(count(classes))

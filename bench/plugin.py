"""All that a plugin author imports: the contracts, and the mark `hookimpl`.

Contracts are Protocols and records: authors inherit nothing. Optional attributes of an attack are
read through `Traits`, so a plain class with `name`, `needs`, `steps`, `start` and `step` is whole;
one with `name`, `needs` and `run` is a `WholeAttack`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import pluggy
from torch import Tensor, nn

from bench.kit import Loss
from bench.lesson import Free, Inner, Lesson, Recipe
from bench.records import Access, Budget, Claim
from bench.threat import L1, L2, Draws, Goal, Linf, PerturbationSet, ThreatModel
from bench.whole import ROWS, Absent, Model, WholeAttack, WholeProblem

__all__ = [
    "L1", "L2", "Absent", "Access", "Attack", "Budget", "Certifier", "Claim", "Dataset", "Defense",
    "Diagnostic", "Evidence", "Finding", "Fraction", "Free", "Goal", "Gradient", "Images", "Inner",
    "Jacobian", "Lesson", "Linf", "Loss", "Model", "PerturbationSet", "Problem", "Randomness",
    "Recipe", "Retire", "Shelf", "Split", "State", "ThreatModel", "Traits", "WholeAttack",
    "WholeProblem", "hookimpl",
]  # fmt: skip

hookimpl = pluggy.HookimplMarker("bench")

State: TypeAlias = Any
"""A tensor [n, ...] of images, or a NamedTuple of tensors whose first field `adv` is that."""


class Retire(StrEnum):
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


class Problem(Draws, Protocol):
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
    run: Tensor
    """[n] int64: which restart or target this is, from 0."""
    classes: int

    @property
    def clean_logits(self) -> Tensor:
        """[n, K] of the clean images; needs scores. Costs nothing: the clean pass is shared."""

    @property
    def rivals(self) -> Tensor:
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

    def wrong(self, answer: Tensor) -> Tensor:
        """[n] bool: do these logits [n, K] or labels [n] reach the goal of the board?"""

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] keyed int64 in [0, high)."""


class Attack(Protocol):
    """A start and a step over explicit state; the harness owns everything else.

    Optional: `cite`, `summary`, `runs(classes) -> int` (restarts or targets; a row begins run
    r + 1 only if run r left it unbroken), `retires` (a `Retire`), `done(state) -> [n] bool`,
    `minimises` (True when smaller perturbations are the aim), `norms` (names of the sets it can
    work in), `goals` (goals it can serve), `source` (`"twin"`: asks the undefended twin instead),
    `stays(before, after) -> [n] bool` (the step between these states has changed nothing: a search
    that asks one question a step may then be asked for several steps of a row at once),
    `joint` (True where it goes for classifier and detector at once: it meets rejecting defenses
    only, and its losses and answers have the rejection score as column K).
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


METHODS = ("runs", "done", "stays", "prepare")
"""What an attack may define beside what it must."""


@dataclass(frozen=True)
class Traits:
    """An attack's optional attributes, with what their absence means."""

    cite: str
    summary: str
    retires: Retire
    minimises: bool
    norms: tuple[str, ...]
    """Empty: every set."""
    goals: tuple[str, ...]
    """Empty: every goal."""
    source: str
    joint: bool
    """It goes for classifier and detector at once."""
    rows: int
    """Of a `WholeAttack`: how many examples it is offered at once; 0 for all."""

    @classmethod
    def of(cls, attack: Attack | WholeAttack) -> Traits:
        """Read them from any object."""
        return cls(
            cite=getattr(attack, "cite", ""),
            summary=getattr(attack, "summary", ""),
            retires=getattr(attack, "retires", Retire.FIRST_SUCCESS),
            minimises=getattr(attack, "minimises", False),
            norms=tuple(getattr(attack, "norms", ())),
            goals=tuple(getattr(attack, "goals", ())),
            source=getattr(attack, "source", ""),
            joint=getattr(attack, "joint", False),
            rows=getattr(attack, "rows", ROWS),
        )

    @staticmethod
    def whole(attack: Attack | WholeAttack) -> TypeGuard[WholeAttack]:
        """Whether it has a `run` of its own instead of `start` and `step`."""
        return hasattr(attack, "run") and not hasattr(attack, "step")

    @staticmethod
    def runs(attack: Attack | WholeAttack, classes: int) -> int:
        """How many runs a row may need."""
        count = getattr(attack, "runs", None)
        return 1 if count is None else int(count(classes))


class Split(NamedTuple):
    """Images and labels of one half of a data set."""

    images: npt.NDArray[np.uint8]
    """[n, C, H, W]: the pixel k stands for k / 255."""
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """A data set in memory."""

    train: Split | None
    """None where only the test half is there."""
    test: Split
    """In the fixed order of the index list: the first n are *the* n examples."""
    index: npt.NDArray[np.int64]
    """Where each test image stands in the official file."""


@dataclass(frozen=True)
class Dataset:
    """A named data set; reading it waits until it is needed."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, H, W)."""
    load: Callable[[Path | None], Images]
    """Reads it from the data folder (None: the folder is not needed); may download into it."""
    test_size: int
    digest: str = ""
    """SHA-256 of the test half in index order; refused when it differs. Empty: unchecked."""
    train_digest: str = ""
    """SHA-256 of the training half; refused when it differs. Empty: unchecked."""
    cite: str = ""
    summary: str = ""
    place: str = ""
    """Its folder inside the data folder, where that has another name than the data set."""


class Shelf(Protocol):
    """Weights by name and digest; the only way weights reach a defense."""

    shape: tuple[int, int, int]
    """(C, H, W) of the data set at hand."""
    classes: int

    def trained(self, module: nn.Module) -> nn.Module:
        """The module, filled with the weights of *this* defense's recipe."""

    def filled(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """The module, filled from a safetensors file beside the plugin (or in `BENCH_DATA`).

        A file of another `sha256` is refused; without one, any file of that name will do.
        """

    def built(self, name: str) -> nn.Module:
        """Another registered defense, built."""


@dataclass(frozen=True)
class Randomness:
    """A defense that answers differently on each call, and says so."""

    draws: int = 10
    """Samples that an attacker averages a gradient over (EOT, arXiv:1707.07397)."""


@dataclass(frozen=True)
class Defense:
    """An ordinary module from images in [0, 1] to logits, and what its author says of it."""

    name: str
    build: Callable[[Shelf], nn.Module]
    datasets: tuple[str, ...] = ("digits",)
    cite: str = ""
    summary: str = ""
    claims: tuple[Claim, ...] = ()
    recipe: Recipe | None = None
    stand_in: Callable[[Shelf], nn.Module] | None = None
    """What an attacker differentiates through where `build` gives no useful gradient."""
    randomness: Randomness | None = None
    twin: str = "undefended"
    """The defense that transfer attacks ask instead of this one."""
    quick: bool = True
    """Played by `bench run` without --defense."""
    forwards: int = 1
    """Passes of the network that one answer takes; above 20 a board plays 128 examples."""
    rejects: float | None = None
    """The share of clean images that it means to reject; None where it answers every image.

    With it the module answers [n, K + 1]: the logits and, last, a rejection score less the
    threshold that was set on calibration images; an image is rejected where that is positive.
    """
    detail: Mapping[str, Any] = field(default_factory=dict)


class Certifier(Protocol):
    """A proof: which examples nobody inside the perturbation set can break.

    Optional: `cite`, `summary`, `error` (the probability with which a statistical proof of one
    example may be wrong; absent or 0: the proof is deterministic, and one counterexample is an
    error of the certifier), `quick` (False where a proof of a small network takes longer than its
    attacks: asked with `--certify all` only).
    """

    name: str
    exact: bool
    """True when an example that is not certified can be broken (a lower *and* an upper bound)."""

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why it cannot speak of this model and set; empty when it can."""

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """[n] bool: right on every image of ball and box."""


class Finding(StrEnum):
    """What a diagnostic says. Clear and not tested are different facts."""

    RAISED = "raised"
    CLEAR = "clear"
    NOT_TESTED = "not tested"


class Evidence(NamedTuple):
    """The numbers behind a flag."""

    finding: Finding
    sentence: str


class Diagnostic(Protocol):
    """A look at a built defense, before any attack."""

    name: str

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """Judge how it answers a few clean images: 64 of them in a run, 32 in `bench check`."""

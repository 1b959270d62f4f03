"""Threat models: data set, access, goal, perturbation set and budget, with an id."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.core.protocols import LeaderboardProtocol
from bench.core.radii import exact_fraction
from bench.threats.access import Access, Budget
from bench.threats.corruption import Corruption
from bench.threats.delta import L2Delta, LinfDelta
from bench.threats.elastic import ElasticField
from bench.threats.fingerprint import class_source_digest, parameters_of
from bench.threats.lp_ball import LpBall
from bench.threats.masked_pattern import MaskedPattern
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.nuisance import Nuisance
from bench.threats.patch import Patch
from bench.threats.perceptual import PerceptualBall
from bench.threats.random_patch import RandomPatch
from bench.threats.sparse import L0
from bench.threats.spatial import RotationTranslation


@dataclass(frozen=True)
class Goal:
    """The attacker's goal.

    Raises ValueError for an unknown kind, or a rule that the kind does not have.
    """

    kind: str = "untargeted"
    """`untargeted`: any wrong class. `targeted`: the declared target class. `nearest`: any wrong
    class at the smallest distance from the clean image."""
    rule: str = ""
    """How a targeted goal chooses the target: `next`, `least-likely`, `random` or `all`."""

    def __post_init__(self) -> None:
        rules = {"untargeted": [""], "nearest": [""], "targeted": TARGET_RULE_NAMES}
        if self.kind not in rules:
            raise ValueError(f"goal is {self.kind!r}; known goals: {', '.join(rules)}.")
        if self.rule not in rules[self.kind]:
            known = ", ".join(map(repr, rules[self.kind]))
            raise ValueError(f"the rule of a {self.kind} goal is {self.rule!r}; allowed: {known}.")


TARGET_RULE_NAMES = ["next", "least-likely", "random", "all"]


PER_EXAMPLE, SHARED = "example", "shared"
"""Scopes of a threat model: a point for each example, or one point for all of them."""


@dataclass(frozen=True)
class ThreatModel:
    """A threat model: data set, access, goal, perturbation set and budget."""

    name: str
    dataset: str
    ball: PerturbationSet
    access: Access = Access.GRADIENTS
    goal: Goal = field(default_factory=Goal)
    budget: Budget = field(default_factory=Budget)
    examples: int = 500
    """Number of test images, the first of the data set's fixed order."""
    protocol: LeaderboardProtocol = field(default_factory=LeaderboardProtocol)
    """What the leaderboard of this threat model asks of every defense; no part of `id`."""
    order: int = 100
    """Position in lists; the smallest comes first."""
    summary: str = ""
    scope: str = PER_EXAMPLE
    """`example`: a point for each example. `shared`: one point for all examples, fitted to the
    training half of the data set; the perturbation set is then parametric."""
    nuisance: Nuisance | None = None
    """Of a physical threat model: how each image changes on its way to the defense. Attacks get the
    mean over draws, and an example is broken on a share of the referee's own draws."""

    def __post_init__(self) -> None:
        if self.scope not in (PER_EXAMPLE, SHARED):
            raise ValueError(f"scope is {self.scope!r}; use {PER_EXAMPLE!r} or {SHARED!r}.")
        if self.scope == SHARED and not self.ball.parametric:
            raise ValueError(
                f"{self.name} shares one point among images, and in {self.ball.name} a point is an"
                " image; use a parametric set, as LinfDelta."
            )

    @property
    def id(self) -> str:
        """Digest of `rules`; name, protocol, summary, order and number of examples are no part.

        Raises PluginError where the perturbation set has parameters without a digest, ValueError
        where its radius is not finite.
        """
        return digest(self.rules())[:16]

    def rules(self) -> dict[str, Any]:
        """The rules of the threat model as JSON values."""
        rules: dict[str, Any] = {
            "dataset": self.dataset,
            "set": describe_set(self.ball),
            "access": self.access.name.lower(),
            "goal": {"kind": self.goal.kind, "rule": self.goal.rule},
            "budget": {"gradients": self.budget.gradients, "queries": self.budget.queries},
        }
        # The ids of the others are those from before there were shared points and nuisances.
        scope = {"scope": self.scope} if self.scope == SHARED else {}
        nuisance = {} if self.nuisance is None else {"nuisance": self.nuisance.parameters()}
        return rules | scope | nuisance


NORM_BALLS: Mapping[str, type[Linf | L2 | L1]] = {"Linf": Linf, "L2": L2, "L1": L1}
BUILT_IN_SETS = tuple(NORM_BALLS.values())
"""The built-in norm balls, without their subclasses."""
NAMED_SETS = (
    RotationTranslation, ElasticField, Patch, LinfDelta, L2Delta, RandomPatch, L0, Corruption,
    MaskedPattern, PerceptualBall, LpBall,
)  # fmt: skip
"""The other built-in sets, whose name and parameters say what they are."""


def norm_ball(norm: str, eps: float | Fraction | str) -> PerturbationSet:
    """The norm ball of a radius. Raises BenchError for an unknown norm or no radius."""
    if norm not in NORM_BALLS:
        raise BenchError(f"norm is {norm!r}; use one of {', '.join(NORM_BALLS)}.")
    return NORM_BALLS[norm](exact_fraction(eps))


def describe_set(ball: PerturbationSet) -> Mapping[str, Any]:
    """A perturbation set as JSON values, its radius as an exact fraction.

    For a set of a plugin also its class, the digest of its source, and its parameters. Raises
    PluginError where a parameter has no digest, ValueError where the radius is not finite.
    """
    known = {"name": ball.name, "eps": str(ball.eps), "radius": finite_radius(ball.radius)}
    kind = type(ball)
    if kind in BUILT_IN_SETS:
        return known
    if kind in NAMED_SETS:
        return {**known, "parameters": parameters_of(ball)}
    code = {"class": kind.__qualname__, "source": class_source_digest(kind)}
    return {**known, **code, "parameters": parameters_of(ball)}


def without_ranks(threat: ThreatModel) -> ThreatModel:
    """The threat model without ranks where its set is code of its own; its id stays the same."""
    if type(threat.ball) in BUILT_IN_SETS:
        return threat
    return replace(threat, protocol=replace(threat.protocol, ranked=False))


def finite_radius(value: float) -> float:
    """The radius itself. Raises ValueError where it is infinite or NaN, which JSON cannot carry."""
    if not math.isfinite(value):
        raise ValueError(f"the radius is {value}; it must be finite.")
    return value

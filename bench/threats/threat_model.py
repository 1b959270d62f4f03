"""Threat models: data set, access, goal, perturbation set and budget, with an id."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.core.hashing import digest
from bench.threats.access import Access, Budget
from bench.threats.fingerprint import class_source_digest, parameters_of
from bench.threats.norms import L1, L2, Linf, PerturbationSet


@dataclass(frozen=True)
class Goal:
    """What the attacker wants of the answer."""

    kind: str = "untargeted"
    """`untargeted`: any wrong class. `targeted`: the declared target. `nearest`: any wrong class,
    as near to the clean image as possible (a distance board)."""
    rule: str = ""
    """How a targeted goal picks its target: `next`, `least-likely`, `random` or `all`."""

    def __post_init__(self) -> None:
        rules = {"untargeted": [""], "nearest": [""], "targeted": TARGET_RULES}
        if self.kind not in rules:
            raise ValueError(f"goal came as {self.kind!r}; known goals: {', '.join(rules)}.")
        if self.rule not in rules[self.kind]:
            known = ", ".join(map(repr, rules[self.kind]))
            raise ValueError(f"a {self.kind} goal came with rule {self.rule!r}; allowed: {known}.")


TARGET_RULES = ["next", "least-likely", "random", "all"]


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker knows, wants, may change and may spend, and on which data."""

    name: str
    dataset: str
    ball: PerturbationSet
    access: Access = Access.GRADIENTS
    goal: Goal = field(default_factory=Goal)
    budget: Budget = field(default_factory=Budget)
    examples: int = 500
    """The first so many of the data set's fixed list of test images."""
    required: tuple[str, ...] = ()
    """Attacks without which a defense has no rank."""
    ranked: bool = True
    """False for boards that are evidence only."""
    order: int = 100
    """Where the board stands in lists; the smallest comes first."""
    summary: str = ""

    @property
    def id(self) -> str:
        """Digest of every rule in it. Names, order and words are not rules."""
        return digest(self.rules())[:16]

    def rules(self) -> dict[str, Any]:
        """The declaration as JSON values."""
        return {
            "dataset": self.dataset,
            "set": describe_set(self.ball),
            "access": self.access.name.lower(),
            "goal": {"kind": self.goal.kind, "rule": self.goal.rule},
            "budget": {"gradients": self.budget.gradients, "queries": self.budget.queries},
            "required": sorted(self.required),
            "ranked": self.ranked,
        }


BUILT_IN = (Linf, L2, L1)
"""The sets whose code is the harness's own; subclasses are not among them."""


def describe_set(ball: PerturbationSet) -> Mapping[str, Any]:
    """A perturbation set as JSON values, its radius as an exact fraction.

    Of a set that a plugin brings also its class, source and parameters: who differs in any of them
    is another set. PluginError where no digest can name one.
    """
    known = {"name": ball.name, "eps": str(ball.eps), "radius": round_trip(ball.radius)}
    kind = type(ball)
    if kind in BUILT_IN:
        return known
    code = {"class": kind.__qualname__, "source": class_source_digest(kind)}
    return {**known, **code, "parameters": parameters_of(ball)}


def round_trip(value: float) -> float:
    """A float that JSON can carry; infinities have no place in a digest."""
    if not math.isfinite(value):
        raise ValueError(f"a radius came as {value}; it must be finite.")
    return value

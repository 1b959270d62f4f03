"""Checks of a threat model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from bench.contract.check import checks_of
from bench.plugin import Attack, Dataset, ThreatModel, Traits
from bench.registry.registry import Registry
from bench.threats.random_numbers import KeyedRandomNumbers, example_key


@dataclass(frozen=True)
class ThreatFixture:
    """A threat model with the registry, for its checks."""

    registry: Registry
    threat: ThreatModel

    @property
    def dataset(self) -> Dataset:
        """The data set that the threat model names."""
        found: Dataset = self.registry.find("dataset", self.threat.dataset).value
        return found

    @cached_property
    def x(self) -> Tensor:
        """Random images [32, C, H, W], some of their pixels black or white."""
        generator = torch.Generator().manual_seed(0)
        return (1.5 * torch.rand(32, *self.dataset.shape, generator=generator) - 0.25).clamp(0, 1)

    @cached_property
    def outside_points(self) -> Tensor:
        """Points [32, C, H, W] outside [0, 1] and, mostly, outside the ball around `x`."""
        generator = torch.Generator().manual_seed(1)
        return self.x + torch.randn(self.x.shape, generator=generator)


def radius_is_an_exact_fraction(fixture: ThreatFixture) -> str:
    """The radius is an exact fraction above 0."""
    eps = fixture.threat.ball.eps
    if isinstance(eps, Fraction) and eps > 0:
        return ""
    return f"eps is {eps!r}; write a fraction above 0, as in Fraction(8, 255)."


def data_set_is_known(fixture: ThreatFixture) -> str:
    """Its data set is registered and has at least `examples` test images."""
    size, examples = fixture.dataset.test_size, fixture.threat.examples
    return "" if 1 <= examples <= size else f"examples is {examples}; write 1 to {size}."


def required_attacks_are_known(fixture: ThreatFixture) -> str:
    """Every required attack is registered."""
    for name in fixture.threat.required:
        fixture.registry.find("attack", name)
    return ""


def required_attacks_are_applicable(fixture: ThreatFixture) -> str:
    """Every required attack fits the access, the perturbation set and the goal."""
    threat = fixture.threat
    for name in threat.required:
        attack: Attack = fixture.registry.find("attack", name).value
        traits = Traits.of(attack)
        if attack.needs > threat.access:
            return f"{name} needs access {attack.needs.name}; {threat.access.name} is declared."
        if traits.norms and threat.ball.name not in traits.norms:
            return f"{name} does not support the norm {threat.ball.name}."
        if traits.goals and threat.goal.kind not in traits.goals:
            return f"{name} does not support the goal {threat.goal.kind}."
    return ""


def id_is_a_digest_of_the_rules(fixture: ThreatFixture) -> str:
    """The rules can be written as JSON, and the id is the same when computed twice."""
    first, second = fixture.threat.id, fixture.threat.id
    return "" if first == second else "the id changes when it is computed again."


def projection_is_feasible_and_idempotent(fixture: ThreatFixture) -> str:
    """`project` gives points inside the ball and [0, 1]; projecting again does not move them."""
    ball = fixture.threat.ball
    once = ball.project(fixture.outside_points, fixture.x)
    if not ball.contains(once.double(), fixture.x.double()).all():
        return "project returned points outside the ball or [0, 1]."
    again = float(ball.distance(ball.project(once, fixture.x), once).max())
    return (
        ""
        if again <= ball.tolerance(once[0].numel())
        else f"projecting again moved points by {again:.2g}."
    )


def clean_image_is_inside(fixture: ThreatFixture) -> str:
    """The clean image is in the set, at distance 0, and is its own projection."""
    ball, x = fixture.threat.ball, fixture.x
    if not ball.contains(x, x).all() or float(ball.distance(x, x).abs().max()) > 0:
        return "the clean image is not in the set at distance 0."
    return "" if torch.equal(ball.project(x, x), x) else "project moved the clean image."


def samples_are_inside(fixture: ThreatFixture) -> str:
    """`sample` gives points inside the ball and [0, 1]."""
    key = example_key(0, "check", torch.arange(32), torch.zeros(32, dtype=torch.int64))
    draws = KeyedRandomNumbers(key, torch.zeros(32, dtype=torch.int64))
    inside = fixture.threat.ball.contains(fixture.threat.ball.sample(fixture.x, draws), fixture.x)
    outside = int((~inside).sum())
    return f"{outside} of 32 samples are outside the ball or [0, 1]." if outside else ""


THREAT_CHECKS = checks_of(
    radius_is_an_exact_fraction,
    data_set_is_known,
    required_attacks_are_known,
    required_attacks_are_applicable,
    id_is_a_digest_of_the_rules,
    projection_is_feasible_and_idempotent,
    clean_image_is_inside,
    samples_are_inside,
)

"""Contract checks of a threat model."""

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
    """A threat model among the attacks and data sets that are registered."""

    registry: Registry
    threat: ThreatModel

    @property
    def dataset(self) -> Dataset:
        """The one it names."""
        found: Dataset = self.registry.find("dataset", self.threat.dataset).value
        return found

    @cached_property
    def x(self) -> Tensor:
        """[32, C, H, W] random images with black and white pixels among them."""
        generator = torch.Generator().manual_seed(0)
        return (1.5 * torch.rand(32, *self.dataset.shape, generator=generator) - 0.25).clamp(0, 1)

    @cached_property
    def outside_points(self) -> Tensor:
        """Points that are outside box and, mostly, ball."""
        generator = torch.Generator().manual_seed(1)
        return self.x + torch.randn(self.x.shape, generator=generator)


def radius_is_an_exact_fraction(rules: ThreatFixture) -> str:
    """The radius is an exact fraction above 0."""
    eps = rules.threat.ball.eps
    if isinstance(eps, Fraction) and eps > 0:
        return ""
    return f"eps came as {eps!r}; write a fraction, as in Fraction(8, 255)."


def data_set_is_known(rules: ThreatFixture) -> str:
    """Its data set is registered, and has as many test images as are asked for."""
    size, asked = rules.dataset.test_size, rules.threat.examples
    return "" if 1 <= asked <= size else f"it asks for {asked} examples of 1 to {size}."


def required_attacks_are_known(rules: ThreatFixture) -> str:
    """Every required attack is registered."""
    for name in rules.threat.required:
        rules.registry.find("attack", name)
    return ""


def required_attacks_may_play(rules: ThreatFixture) -> str:
    """Every required attack makes do with the access, and serves set and goal."""
    threat = rules.threat
    for name in threat.required:
        attack: Attack = rules.registry.find("attack", name).value
        traits = Traits.of(attack)
        if attack.needs > threat.access:
            return f"{name} needs {attack.needs.name}, {threat.access.name} is given."
        if traits.norms and threat.ball.name not in traits.norms:
            return f"{name} does not work in {threat.ball.name}."
        if traits.goals and threat.goal.kind not in traits.goals:
            return f"{name} does not serve the goal {threat.goal.kind}."
    return ""


def id_is_a_digest_of_the_rules(rules: ThreatFixture) -> str:
    """The id is the same again, and the rules are JSON."""
    return "" if rules.threat.id == rules.threat.id else "the id changes from look to look."


def projection_is_feasible_and_idempotent(rules: ThreatFixture) -> str:
    """`project` lands inside ball and box, and moves nothing a second time."""
    ball = rules.threat.ball
    once = ball.project(rules.outside_points, rules.x)
    if not ball.contains(once.double(), rules.x.double()).all():
        return "project left points outside."
    again = float(ball.distance(ball.project(once, rules.x), once).max())
    return (
        "" if again <= ball.tolerance(once[0].numel()) else f"projecting again moved {again:.2g}."
    )


def clean_image_is_inside(rules: ThreatFixture) -> str:
    """The clean image is inside, at distance 0, and projects onto itself."""
    ball, x = rules.threat.ball, rules.x
    if not ball.contains(x, x).all() or float(ball.distance(x, x).abs().max()) > 0:
        return "the clean image is not inside at distance 0."
    return "" if torch.equal(ball.project(x, x), x) else "projecting the clean image moved it."


def samples_are_inside(rules: ThreatFixture) -> str:
    """`sample` gives points inside ball and box."""
    key = example_key(0, "check", torch.arange(32), torch.zeros(32, dtype=torch.int64))
    draws = KeyedRandomNumbers(key, torch.zeros(32, dtype=torch.int64))
    inside = rules.threat.ball.contains(rules.threat.ball.sample(rules.x, draws), rules.x)
    return "" if inside.all() else f"{int((~inside).sum())} of 32 samples are outside."


THREAT_CHECKS = checks_of(
    radius_is_an_exact_fraction,
    data_set_is_known,
    required_attacks_are_known,
    required_attacks_may_play,
    id_is_a_digest_of_the_rules,
    projection_is_feasible_and_idempotent,
    clean_image_is_inside,
    samples_are_inside,
)

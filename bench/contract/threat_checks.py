"""Checks of a threat model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bench.contract.check import checks_of
from bench.core.protocols import DECLARED
from bench.data.datasets import load_dataset, require_available
from bench.evaluation.targets import why_no_target
from bench.plugin import SHARED, Access, Attack, Dataset, ThreatModel, Traits, is_shared
from bench.registry.registry import Registry
from bench.results.check_table import ANSWERS
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

    @property
    def x(self) -> Tensor:
        """Random images [32, C, H, W], some of their pixels black or white."""
        generator = torch.Generator().manual_seed(0)
        return (1.5 * torch.rand(32, *self.dataset.shape, generator=generator) - 0.25).clamp(0, 1)

    @property
    def outside_points(self) -> Tensor:
        """Points [32, ...], most of them outside the set around `x`, images also outside [0, 1]."""
        generator, start = torch.Generator().manual_seed(1), self.threat.ball.start(self.x)
        size = 2 * self.threat.ball.radius if self.threat.ball.parametric else 1
        return start + size * torch.randn(start.shape, generator=generator)


def radius_is_an_exact_fraction(fixture: ThreatFixture) -> str:
    """The radius is an exact fraction above 0."""
    eps = fixture.threat.ball.eps
    if isinstance(eps, Fraction) and eps > 0:
        return ""
    return f"eps is {eps!r}; write a fraction above 0, as in Fraction(8, 255)."


def data_set_is_known(fixture: ThreatFixture) -> str:
    """Its data set is registered and has at least `examples` test images."""
    require_available(fixture.dataset)
    size, examples = fixture.dataset.test_size, fixture.threat.examples
    if fixture.dataset.local:  # a run takes as many as the user's folder has
        return "" if examples >= 1 else f"examples is {examples}; write at least 1."
    return "" if 1 <= examples <= size else f"examples is {examples}; write 1 to {size}."


def required_attacks_are_known(fixture: ThreatFixture) -> str:
    """Every required attack is registered."""
    for name in fixture.threat.protocol.required:
        fixture.registry.find("attack", name)
    return ""


def required_attacks_are_applicable(fixture: ThreatFixture) -> str:
    """Every required attack fits the access, the perturbation set and the goal."""
    threat = fixture.threat
    for name in threat.protocol.required:
        attack: Attack = fixture.registry.find("attack", name).value
        traits = Traits.of(attack)
        if not traits.source and attack.needs > threat.access:
            return f"{name} needs access {attack.needs.name}; {threat.access.name} is declared."
        if why := traits.why_not_in(threat.ball):
            return f"{name} {why}; the set is {threat.ball.name}."
        if traits.goals and threat.goal.kind not in traits.goals:
            return f"{name} does not support the goal {threat.goal.kind}."
    return ""


def goal_has_a_target(fixture: ThreatFixture) -> str:
    """A targeted goal has a class to aim at: its data set has two or more."""
    return why_no_target(fixture.threat, len(fixture.dataset.classes))


def follow_up_attacks_are_known(fixture: ThreatFixture) -> str:
    """Every follow-up attack and surrogate is registered, and answers a known kind of warning."""
    protocol = fixture.threat.protocol
    unknown = [kind for kind in protocol.follow_ups if kind not in ANSWERS]
    if unknown:
        return f"follow_ups names {unknown[0]!r}; known kinds: {', '.join(ANSWERS)}."
    for name in protocol.attacks:
        fixture.registry.find("attack", name)
    for name in protocol.surrogates.values():
        fixture.registry.find("defense", name)
    for name in protocol.evidence:
        fixture.registry.find("threat", name)
    return ""


KINDS: dict[str, Callable[[Attack], bool]] = {
    "gradient": lambda a: a.needs is Access.GRADIENTS and not Traits.of(a).source,
    "transfer": lambda a: bool(Traits.of(a).source) and Traits.of(a).source != DECLARED,
    "score-based": lambda a: a.needs is Access.SCORES,
    "decision-based": lambda a: a.needs is Access.LABELS,
}
"""Kind of attack -> whether an attack is of that kind. A defense chooses its declared surrogate."""


def ranked_protocol_has_an_attack_of_each_kind(fixture: ThreatFixture) -> str:
    """A ranked protocol requires a gradient, transfer, score and decision attack.

    Without any required attack it ranks no defense.
    Kinds that the access does not allow, or of which no registered attack fits the perturbation
    set and the goal, are not needed.
    """
    threat, registry = fixture.threat, fixture.registry
    if not (threat.protocol.ranked and threat.protocol.required):
        return ""
    required = [registry.find("attack", name).value for name in threat.protocol.required]
    fitting = [found.value for found in registry.attacks.values() if _fits(threat, found.value)]
    lacking = [
        kind
        for kind, is_of in KINDS.items()
        if any(map(is_of, fitting)) and not any(map(is_of, required))
    ]
    if "transfer" in lacking and not _has_surrogates(fixture):
        lacking.remove("transfer")
    if not lacking:
        return ""
    fitting.sort(key=lambda attack: not Traits.has_steps(attack))
    examples = [next(a.name for a in fitting if KINDS[kind](a)) for kind in lacking]
    return (
        f"the protocol ranks without a {' and a '.join(lacking)} attack, so a defense that hides "
        f"its gradient ranks too high; require for example {', '.join(examples)}, or declare "
        "ranked=False."
    )


def _has_surrogates(fixture: ThreatFixture) -> bool:
    """Whether the protocol names a surrogate, or one can be learned from training images."""
    named = bool(fixture.threat.protocol.surrogates)
    return named or load_dataset(fixture.dataset).train is not None


def _fits(threat: ThreatModel, attack: Attack) -> bool:
    """Whether an attack fits access, perturbation set and goal of a threat model."""
    traits = Traits.of(attack)
    if is_shared(attack) != (threat.scope == SHARED):
        return False
    needs = Access.NOTHING if traits.source else attack.needs
    fits_set = not traits.why_not_in(threat.ball)
    fits_goal = not traits.goals or threat.goal.kind in traits.goals
    return needs <= threat.access and fits_set and fits_goal


def id_is_a_digest_of_the_rules(fixture: ThreatFixture) -> str:
    """The rules can be written as JSON, and the id is the same when computed twice."""
    first, second = fixture.threat.id, fixture.threat.id
    return "" if first == second else "the id changes when it is computed again."


def projection_is_feasible_and_idempotent(fixture: ThreatFixture) -> str:
    """`project` gives points inside the set and [0, 1]; projecting again does not move them."""
    ball, x = fixture.threat.ball, fixture.x
    once = ball.project(fixture.outside_points, x)
    if not ball.contains(once.double(), x.double()).all():
        return "project returned points outside the set or [0, 1]."
    twice = ball.project(once, x)
    if ball.parametric:
        again = float((twice - once).flatten(1).abs().amax())
    else:
        again = float(ball.distance(twice, once).max())
    return (
        ""
        if again <= ball.tolerance(once[0].numel())
        else f"projecting again moved points by {again:.2g}."
    )


def clean_image_is_inside(fixture: ThreatFixture) -> str:
    """The clean image's point is in the set, at distance 0, and gives the image to the bit."""
    ball, x = fixture.threat.ball, fixture.x
    start = ball.start(x)
    if not ball.contains(start, x).all() or float(ball.distance(start, x).abs().max()) > 0:
        return "the clean image is not in the set at distance 0."
    if not torch.equal(ball.apply(start, x), x):
        return "apply(start(x), x) is not the clean image to the bit."
    return "" if torch.equal(ball.project(start, x), start) else "project moved the clean image."


def samples_are_inside(fixture: ThreatFixture) -> str:
    """`sample` gives points inside the set, whose images are in [0, 1]."""
    key = example_key(0, "check", torch.arange(32), torch.zeros(32, dtype=torch.int64))
    draws = KeyedRandomNumbers(key, torch.zeros(32, dtype=torch.int64))
    ball, x = fixture.threat.ball, fixture.x
    points = ball.sample(x, draws)
    images = ball.apply(points, x).flatten(1)
    inside = ball.contains(points, x) & (images.amin(1) >= 0) & (images.amax(1) <= 1)
    outside = int((~inside).sum())
    return f"{outside} of 32 samples are outside the set or [0, 1]." if outside else ""


def images_depend_on_their_own_row(fixture: ThreatFixture) -> str:
    """`apply` makes each image from its own point and clean image, the same in any batch."""
    ball, x = fixture.threat.ball, fixture.x
    points = ball.project(fixture.outside_points, x)
    whole = ball.apply(points, x)
    if not torch.equal(ball.apply(points[5:6], x[5:6]), whole[5:6]):
        return "apply gives another image where a row is alone."
    return "" if torch.equal(ball.apply(points, x), whole) else "apply differs from call to call."


THREAT_CHECKS = checks_of(
    radius_is_an_exact_fraction,
    data_set_is_known,
    required_attacks_are_known,
    required_attacks_are_applicable,
    goal_has_a_target,
    follow_up_attacks_are_known,
    ranked_protocol_has_an_attack_of_each_kind,
    id_is_a_digest_of_the_rules,
    projection_is_feasible_and_idempotent,
    clean_image_is_inside,
    samples_are_inside,
    images_depend_on_their_own_row,
)

"""Checks of an attack that fits one point to the training half of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from torch import Tensor

from bench.contract.attack_fixture import GOAL_EXAMPLES, PARAMETRIC_EXAMPLES, AttackFixture
from bench.contract.check import DoesNotApply, checks_of
from bench.engine.model_access import ModelAccess
from bench.engine.shared_point import TrainingImages, fit_point
from bench.plugin import SharedAttack, Traits
from bench.registry.registry import Registry
from bench.threats.delta import L2Delta, LinfDelta
from bench.threats.fingerprint import parameters_of
from bench.threats.parametric import ParametricSet
from bench.threats.random_patch import RandomPatch

FEW_IMAGES = 96
"""Training images to which the checks fit a point."""
SHARED_EXAMPLES: dict[str, ParametricSet] = {
    "linf-delta": LinfDelta(eps=Fraction(2, 5)),
    "l2-delta": L2Delta(eps=Fraction(3)),
    "random-patch": RandomPatch(size=4, smallest=0.8, degrees=20.0),
}
"""Sets in which shared attacks are checked, besides those of other attacks."""


@dataclass(frozen=True)
class SharedFixture:
    """A shared attack with a small model and a few training images."""

    registry: Registry
    attack: SharedAttack

    @cached_property
    def _few(self) -> AttackFixture:
        return AttackFixture(self.registry, self.attack)  # type: ignore[arg-type]

    @property
    def sets(self) -> dict[str, ParametricSet]:
        """A set for each one that the attack declares; raises DoesNotApply where none is known."""
        traits = Traits.of(self.attack)  # type: ignore[arg-type]
        known = {**SHARED_EXAMPLES, **PARAMETRIC_EXAMPLES}
        names = tuple(known) if traits.coordinates else traits.norms
        found = {n: b for n, b in known.items() if n in names and isinstance(b, ParametricSet)}
        if not found:
            raise DoesNotApply(f"it declares {', '.join(names)}; known: {', '.join(known)}.")
        return found

    def fit(self, ball: ParametricSet) -> tuple[Tensor, Tensor]:
        """A fitted point [1, ...], and which images [n] bool it fools, with the declared access.

        Raises PluginError where it needs more, or returns no point of the set.
        """
        model = self._few.model_fixture
        x, y = model.x[:FEW_IMAGES].clone(), model.y[:FEW_IMAGES].clone()
        limited = ModelAccess(
            model.model, access=self.attack.needs, attack_name=self.attack.name,
            threat_model="its declared `needs`",
        )  # fmt: skip
        training = TrainingImages(
            limited, ball, x, y, classes=model.classes, seed=0, name=self.attack.name
        )
        point = fit_point(self.attack, training, limited)
        images = ball.apply(point.expand(len(x), *point.shape[1:]), x)
        return point, model.model(images).argmax(1) != model.model(x).argmax(1)


def traits_are_known(fixture: SharedFixture) -> str:
    """Goals are known ones, and the parameters are the same when read twice."""
    attack = fixture.attack
    unknown = [g for g in Traits.of(attack).goals if g not in GOAL_EXAMPLES]  # type: ignore[arg-type]
    if unknown:
        return f"goals contain {unknown[0]!r}; known goals: {', '.join(GOAL_EXAMPLES)}."
    same = parameters_of(attack) == parameters_of(attack)
    return "" if same else "the parameters differ from one reading to the next."


def a_fitted_point_is_in_the_set(fixture: SharedFixture) -> str:
    """In each set that it declares, `fit` returns one finite point of the set."""
    for ball in fixture.sets.values():
        fixture.fit(ball)  # a point outside raises PluginError
    return ""


def a_fit_is_the_same_again(fixture: SharedFixture) -> str:
    """Fitted again to the same images, the point is the same to the bit."""
    ball = next(iter(fixture.sets.values()))
    one, two = fixture.fit(ball)[0], fixture.fit(ball)[0]
    far = float((one - two).abs().max())
    return "" if far == 0 else f"two fits differ by {far:.3g}; use problem.draws or rows.uniform."


def a_point_fools_something(fixture: SharedFixture) -> str:
    """In a wide set it changes the class of at least one training image."""
    name, ball = next(iter(fixture.sets.items()))
    fooled = fixture.fit(ball)[1]
    return "" if fooled.any() else f"it fooled none of {len(fooled)} images in {name} {ball.eps}."


SHARED_CHECKS = checks_of(
    traits_are_known,
    a_fitted_point_is_in_the_set,
    a_fit_is_the_same_again,
    a_point_fools_something,
)

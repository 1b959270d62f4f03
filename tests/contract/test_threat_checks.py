"""Every check of threat models can fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.contract.check import CheckOutcome
from bench.core.protocols import LeaderboardProtocol
from bench.plugin import (
    Access,
    Goal,
    Linf,
    ParametricSet,
    ThreatModel,
    clamp_straight_through,
)
from bench.registry.registry import Registry
from tests.contract.planted import extended, run_named_check


@dataclass(frozen=True)
class Loose(Linf):
    """A cube whose projection leaves [0, 1]."""

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        return torch.clamp(adv, x - self.radius, x + self.radius)


@dataclass(frozen=True)
class Drifting(Linf):
    """A cube whose projection moves every point halfway to the clean image."""

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        return x + (super().project(adv, x) - x) / 2


@dataclass(frozen=True)
class Shifted(Linf):
    """A cube whose distance of equal images is not 0."""

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        return super().distance(adv, x) + 0.01


@dataclass(frozen=True)
class Far(Linf):
    """A cube whose samples are twice too far."""

    def sample(self, x: Tensor, draws: Any) -> Tensor:
        return Linf(2 * self.eps).sample(x, draws)


@dataclass(frozen=True)
class Brightness(ParametricSet):
    """A change of all pixels by up to a fifth."""

    name = "brightness"

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return (1,)

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        return clamp_straight_through(x + 0.2 * adv[:, :, None, None])


class Darker(Brightness):
    """Its start is not the clean image."""

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        return super().apply(adv, 0.999 * x)


class Unclamped(Brightness):
    """Its images leave [0, 1]."""

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        return x + 0.2 * adv[:, :, None, None]


class OfTheBatch(Brightness):
    """An image depends on the points of other rows."""

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        return super().apply(adv - adv.mean(0), x)


class Forgetful(Brightness):
    """The same point gives another image in the next call."""

    calls = 0

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().apply(adv / self.calls, x)


EPS = Fraction(1, 5)
EACH_KIND = ("pgd", "transfer-learned", "square", "hopskipjump")
"""A gradient, a transfer, a score-based and a decision-based attack."""
THREATS: list[tuple[str, dict[str, Any]]] = [
    ("radius-is-an-exact-fraction", {"ball": SimpleNamespace(eps=0.031)}),
    ("radius-is-an-exact-fraction", {"ball": Linf(Fraction(0))}),
    ("data-set-is-known", {"dataset": "digitz"}),
    ("data-set-is-known", {"examples": 501}),
    ("required-attacks-are-known", {"protocol": LeaderboardProtocol(("pdg",))}),
    (
        "required-attacks-are-applicable",
        {"protocol": LeaderboardProtocol(("pgd",)), "access": Access.LABELS},
    ),
    (
        "required-attacks-are-applicable",
        {"protocol": LeaderboardProtocol(("deepfool",)), "goal": Goal("targeted", "next")},
    ),
    ("follow-up-attacks-are-known", {"protocol": LeaderboardProtocol((), {"luck": ("pgd",)})}),
    ("follow-up-attacks-are-known", {"protocol": LeaderboardProtocol((), {"EOT": ("pdg",)})}),
    (
        "follow-up-attacks-are-known",
        {"protocol": LeaderboardProtocol(surrogates={"standard": "absent"})},
    ),
    ("follow-up-attacks-are-known", {"protocol": LeaderboardProtocol(evidence=("nowhere",))}),
    *(
        (
            "ranked-protocol-has-an-attack-of-each-kind",
            {"protocol": LeaderboardProtocol(tuple(n for n in EACH_KIND if n != left_out))},
        )
        for left_out in EACH_KIND
    ),
    ("id-is-a-digest-of-the-rules", {"ball": SimpleNamespace(eps=EPS, name="x", radius=np.inf)}),
    ("projection-is-feasible-and-idempotent", {"ball": Loose(EPS)}),
    ("projection-is-feasible-and-idempotent", {"ball": Drifting(EPS)}),
    ("clean-image-is-inside", {"ball": Shifted(EPS)}),
    ("samples-are-inside", {"ball": Far(EPS)}),
    ("clean-image-is-inside", {"ball": Darker()}),
    ("samples-are-inside", {"ball": Unclamped()}),
    ("images-depend-on-their-own-row", {"ball": OfTheBatch()}),
    ("images-depend-on-their-own-row", {"ball": Forgetful()}),
    ("goal-has-a-target", {"dataset": "one-class", "goal": Goal("targeted", "next")}),
    ("goal-has-a-target", {"dataset": "one-class", "goal": Goal("targeted", "all")}),
    ("goal-has-a-target", {"dataset": "one-class", "goal": Goal("targeted", "random")}),
]


@pytest.mark.parametrize(("check", "record"), THREATS)
def test_a_check_fails_on_a_threat_model_made_to_fail_it(
    registry: Registry, check: str, record: dict[str, Any]
) -> None:
    good = ThreatModel("planted", "digits", Linf(EPS), protocol=LeaderboardProtocol(EACH_KIND))
    assert run_named_check(registry, "threat", good, check).outcome is CheckOutcome.PASS
    bad = replace(good, **record)
    one = replace(registry.datasets["digits"].value, name="one-class", classes=("zero",))
    registry = extended(registry, "dataset", one)
    assert run_named_check(registry, "threat", bad, check).outcome is CheckOutcome.FAIL

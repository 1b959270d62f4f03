"""Every check of threat models, data sets, certifiers and diagnostics can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.contract.check import CheckOutcome
from bench.plugin import Access, Evidence, Finding, Goal, Images, Linf, Split, ThreatModel
from bench.registry.registry import Registry
from tests.contract.planted import run_named_check


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


EPS = Fraction(1, 5)
THREATS: list[tuple[str, dict[str, Any]]] = [
    ("radius-is-an-exact-fraction", {"ball": SimpleNamespace(eps=0.031)}),
    ("radius-is-an-exact-fraction", {"ball": Linf(Fraction(0))}),
    ("data-set-is-known", {"dataset": "digitz"}),
    ("data-set-is-known", {"examples": 501}),
    ("required-attacks-are-known", {"required": ("pdg",)}),
    ("required-attacks-are-applicable", {"required": ("pgd",), "access": Access.LABELS}),
    (
        "required-attacks-are-applicable",
        {"required": ("deepfool",), "goal": Goal("targeted", "next")},
    ),
    ("id-is-a-digest-of-the-rules", {"ball": SimpleNamespace(eps=EPS, name="x", radius=np.inf)}),
    ("projection-is-feasible-and-idempotent", {"ball": Loose(EPS)}),
    ("projection-is-feasible-and-idempotent", {"ball": Drifting(EPS)}),
    ("clean-image-is-inside", {"ball": Shifted(EPS)}),
    ("samples-are-inside", {"ball": Far(EPS)}),
]


@pytest.mark.parametrize(("check", "record"), THREATS)
def test_a_check_fails_on_a_threat_model_made_to_fail_it(
    registry: Registry, check: str, record: dict[str, Any]
) -> None:
    good = ThreatModel("planted", "digits", Linf(EPS))
    assert run_named_check(registry, "threat", good, check).outcome is CheckOutcome.PASS
    bad = replace(good, **record)
    assert run_named_check(registry, "threat", bad, check).outcome is CheckOutcome.FAIL


READS = 0


def shuffled(images: Images) -> Images:
    global READS
    READS += 1
    return replace(images, test=Split(np.roll(images.test.images, READS, 0), images.test.labels))


def one_class_less(images: Images) -> Images:
    kept = images.test.labels != 3
    test = Split(images.test.images[kept], images.test.labels[kept])
    return Images(images.train, test, images.index[kept])


def sorted_by_class(images: Images) -> Images:
    order = np.argsort(images.test.labels, kind="stable")
    test = Split(images.test.images[order], images.test.labels[order])
    return Images(images.train, test, images.index[order])


def darkened(images: Images) -> Images:
    return replace(images, test=Split(images.test.images // 16, images.test.labels))


def train_is_test(images: Images) -> Images:
    return replace(images, train=images.test)


def too_small(images: Images) -> Images:
    return replace(images, test=Split(images.test.images[:, :, :7], images.test.labels))


DATASETS: list[tuple[str, Callable[[Images], Images] | None, dict[str, Any]]] = [
    ("digest-is-declared", None, {"digest": ""}),
    ("digest-is-that-of-the-images", None, {"digest": "0" * 64}),
    ("digest-is-that-of-the-images", None, {"train_digest": "0" * 64}),
    ("it-is-what-its-record-says", too_small, {}),
    ("reading-again-gives-the-same", shuffled, {}),
    ("every-class-is-there", one_class_less, {"test_size": 450}),
    ("first-examples-are-balanced", sorted_by_class, {}),
    ("pixels-use-their-range", darkened, {}),
    ("training-and-test-are-apart", train_is_test, {}),
]


@pytest.mark.parametrize(("check", "spoil", "record"), DATASETS)
def test_a_check_fails_on_a_data_set_made_to_fail_it(
    registry: Registry, check: str, spoil: Callable[[Images], Images] | None, record: dict[str, Any]
) -> None:
    good = registry.datasets["digits"].value
    if spoil is not None:
        record = {
            "digest": "",
            "train_digest": "",
            **record,
            "load": lambda folder: spoil(good.load(folder)),
        }
    bad = replace(good, name="planted", **record)
    assert run_named_check(registry, "dataset", bad, check).outcome is CheckOutcome.FAIL
    assert run_named_check(registry, "dataset", good, check).outcome is CheckOutcome.PASS


def certifier(registry: Registry, **spoiled: Any) -> Any:
    """The exact linear certificate, spoiled."""
    good = registry.certifiers["linear-exact"].value
    return SimpleNamespace(
        **{"name": "planted", "exact": True, "refuses": good.refuses, "certify": good.certify}
        | spoiled
    )


CERTIFIERS: list[tuple[str, dict[str, Any]]] = [
    ("refusal-is-a-sentence", {"refuses": lambda module, ball: False}),
    ("certificate-has-one-bit-a-row", {"certify": lambda m, x, y, ball: x[:, 0, 0, 0]}),
    ("no-certificate-is-false", {"certify": lambda m, x, y, ball: y >= 0}),
    (
        "no-certificate-is-false",
        {"certify": lambda m, x, y, ball: (x[:, 0, 0, 0] - 0.5).abs() > ball.radius},
    ),
    ("smaller-balls-certify-more", {"certify": lambda m, x, y, ball: y < 10 * ball.radius}),
    ("model-is-left-alone", {"certify": lambda m, x, y, ball: m.train() and y > 9}),
]


@pytest.mark.parametrize(("check", "spoiled"), CERTIFIERS)
def test_a_check_fails_on_a_certifier_made_to_fail_it(
    registry: Registry, check: str, spoiled: dict[str, Any]
) -> None:
    assert (
        run_named_check(registry, "certifier", certifier(registry, **spoiled), check).outcome
        is CheckOutcome.FAIL
    )
    assert (
        run_named_check(registry, "certifier", certifier(registry), check).outcome
        is CheckOutcome.PASS
    )


EXAMINATIONS = 0


def changing_evidence(*args: Any) -> Evidence:
    global EXAMINATIONS
    EXAMINATIONS += 1
    return Evidence(Finding.CLEAR, f"look {EXAMINATIONS}.")


def seeding(*args: Any) -> Evidence:
    torch.manual_seed(0)
    return Evidence(Finding.CLEAR, "all is well.")


DIAGNOSTICS: list[tuple[str, Callable[..., Any]]] = [
    ("evidence-is-a-finding-and-a-sentence", lambda *args: True),
    ("evidence-is-a-finding-and-a-sentence", lambda *args: Evidence(Finding.CLEAR, " ")),
    ("honest-models-raise-no-flag", lambda *args: Evidence(Finding.RAISED, "guilty.")),
    ("looking-is-repeatable", changing_evidence),
    ("model-is-left-alone", seeding),
]


@pytest.mark.parametrize(("check", "examine"), DIAGNOSTICS)
def test_a_check_fails_on_a_diagnostic_made_to_fail_it(
    registry: Registry, check: str, examine: Callable[..., Any]
) -> None:
    bad = SimpleNamespace(name="planted", examine=examine)
    assert run_named_check(registry, "diagnostic", bad, check).outcome is CheckOutcome.FAIL

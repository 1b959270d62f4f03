"""Every check of certifiers and diagnostics can fail."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.contract.check import CheckOutcome
from bench.plugin import Evidence, Finding
from bench.registry.registry import Registry
from tests.contract.planted import run_named_check


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
    ("images-are-left-alone", {"certify": lambda m, x, y, ball: x.zero_()[:, 0, 0, 0] > 2}),
    (
        "images-are-left-alone",
        {"certify": lambda m, x, y, ball: x.clamp_(0, 1).flatten(1)[:, 0] > 2},
    ),
    ("images-are-left-alone", {"certify": lambda m, x, y, ball: y.add_(1) > 9}),
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
    return Evidence(Finding.PASSED, f"look {EXAMINATIONS}.")


def seeding(*args: Any) -> Evidence:
    torch.manual_seed(0)
    return Evidence(Finding.PASSED, "all is well.")


def overwriting(module: Any, x: Any, y: Any, defense: Any) -> Evidence:
    x.data.clamp_(0.25, 0.75)
    return Evidence(Finding.PASSED, "all is well.")


DIAGNOSTICS: list[tuple[str, Callable[..., Any]]] = [
    ("evidence-is-a-finding-and-a-sentence", lambda *args: True),
    ("evidence-is-a-finding-and-a-sentence", lambda *args: Evidence(Finding.PASSED, " ")),
    ("honest-models-raise-no-flag", lambda *args: Evidence(Finding.WARNING, "guilty.")),
    ("looking-is-repeatable", changing_evidence),
    ("model-is-left-alone", seeding),
    ("images-are-left-alone", overwriting),
]


@pytest.mark.parametrize(("check", "examine"), DIAGNOSTICS)
def test_a_check_fails_on_a_diagnostic_made_to_fail_it(
    registry: Registry, check: str, examine: Callable[..., Any]
) -> None:
    bad = SimpleNamespace(name="planted", examine=examine)
    assert run_named_check(registry, "diagnostic", bad, check).outcome is CheckOutcome.FAIL

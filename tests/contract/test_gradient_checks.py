"""Checks of gradients fail on misleading ones, and accept a useful `bpda`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from bench.contract.check import CheckOutcome
from bench.plugin import straight_through
from bench.registry.registry import Registry
from tests.contract.planted import Wrapped, defense, run_named_check


def rounded(self: Any, images: Tensor) -> Any:
    return self.inner(straight_through(lambda x: (7 * x).round() / 7)(images))


FORWARDS: dict[str, Callable[[Any, Tensor], Any]] = {
    "a-gradient-exists": lambda self, x: self.inner(x.detach()),
    "gradient-is-the-slope": rounded,
}


@pytest.mark.parametrize("check", FORWARDS)
def test_a_check_fails_on_a_forward_made_to_fail_it(
    registry: Registry, classifier: nn.Module, check: str
) -> None:
    bad = defense(lambda loader: Wrapped(classifier, FORWARDS[check]))
    assert run_named_check(registry, "defense", bad, check).outcome is CheckOutcome.FAIL
    good = defense(lambda loader: Wrapped(classifier, lambda self, x: self.inner(x)))
    result = run_named_check(registry, "defense", good, check)
    assert result.outcome is CheckOutcome.PASS, result.sentence


@pytest.mark.parametrize(
    "forward", [lambda self, x: self.inner(x.detach()), lambda self, x: self.inner(x)[:, :3]]
)
def test_a_bpda_without_use_fails(
    registry: Registry, classifier: nn.Module, forward: Callable[[Any, Tensor], Any]
) -> None:
    bad = defense(lambda loader: classifier, bpda=lambda loader: Wrapped(classifier, forward))
    assert (
        run_named_check(registry, "defense", bad, "bpda-answers-alike").outcome is CheckOutcome.FAIL
    )
    good = defense(lambda loader: classifier, bpda=lambda loader: copy.deepcopy(classifier))
    assert (
        run_named_check(registry, "defense", good, "bpda-answers-alike").outcome
        is CheckOutcome.PASS
    )


def test_gradient_checks_do_not_apply_to_a_defense_with_a_bpda(
    registry: Registry, classifier: nn.Module
) -> None:
    hidden = defense(
        lambda loader: Wrapped(classifier, FORWARDS["a-gradient-exists"]),
        bpda=lambda loader: copy.deepcopy(classifier),
    )
    for check in ("a-gradient-exists", "gradient-is-the-slope"):
        assert (
            run_named_check(registry, "defense", hidden, check).outcome
            is CheckOutcome.NOT_APPLICABLE
        )


def test_gradient_checks_do_not_apply_to_a_built_in_control(
    registry: Registry, classifier: nn.Module
) -> None:
    control = defense(
        lambda loader: Wrapped(classifier, FORWARDS["a-gradient-exists"]),
        control="on purpose",
    )
    result = run_named_check(registry, "defense", control, "a-gradient-exists", origin="built-in")
    assert result.outcome is CheckOutcome.NOT_APPLICABLE
    assert "a control: on purpose" in result.sentence
    assert (
        run_named_check(registry, "defense", control, "better-than-chance").outcome
        is CheckOutcome.PASS
    )


@pytest.mark.parametrize("origin", ["entry-point", "submission", "file"])
@pytest.mark.parametrize("check", ["a-gradient-exists", "gradient-is-the-slope"])
def test_gradient_checks_apply_to_a_control_that_is_not_built_in(
    registry: Registry, classifier: nn.Module, origin: str, check: str
) -> None:
    other = defense(lambda loader: Wrapped(classifier, FORWARDS[check]), control="on purpose")
    assert (
        run_named_check(registry, "defense", other, check, origin=origin).outcome
        is CheckOutcome.FAIL
    )

"""The plugin contract over every registered plugin: the list that `bench check` runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bench.contract.check import CheckOutcome
from bench.contract.runner import check_registration
from bench.registry.registry import HOOK_OF_KIND, Registry

SUBMISSIONS = Path(__file__).parents[2] / "submissions"


@cache
def registry() -> Registry:
    return Registry.load(SUBMISSIONS)


def registered() -> Iterator[tuple[str, str]]:
    for kind in HOOK_OF_KIND:
        for name in getattr(registry(), f"{kind}s"):
            yield kind, name


def test_no_plugin_is_refused() -> None:
    assert registry().problems == []


def long(kind: str, name: str) -> bool:
    """Whether the checks take long: data sets of 60000 images are read and hashed twice, and
    defenses of the digits that are not `quick` are trained first."""
    if kind == "defense":
        return not registry().defenses[name].value.quick
    return kind == "dataset" and name != "digits"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(*o, id="-".join(o), marks=[pytest.mark.slow] if long(*o) else [])
        for o in registered()
    ],
)
def test_a_registered_plugin_fails_no_check(kind: str, name: str) -> None:
    registration = registry().find(kind, name)
    train = kind == "defense" and "digits" in registration.value.datasets
    results = list(check_registration(registry(), kind, registration, train=train))
    failed = [f"{r.check}: {r.sentence}" for r in results if r.outcome is CheckOutcome.FAIL]
    assert failed == []
    not_run = [r.sentence for r in results if r.outcome is CheckOutcome.NOT_RUN]
    if not_run and "has no weights" not in not_run[0]:
        pytest.skip(not_run[0])
    # A network for images takes hours to train; what needs its weights is not run here.
    assert not (train and not_run)

"""The plugin contract over every registered plugin: the list that `bench check` runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bench.contract.check import CheckOutcome
from bench.contract.runner import CHECKS, FIXTURES, run_check
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
    defenses that are not `quick` are trained first."""
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
    fixture = FIXTURES[kind](registry(), registry().find(kind, name).value)
    results = [run_check(kind, name, check, fixture) for check in CHECKS[kind]]
    failed = [f"{r.check}: {r.sentence}" for r in results if r.outcome is CheckOutcome.FAIL]
    assert failed == []
    if all(r.outcome is CheckOutcome.NOT_APPLICABLE for r in results):
        pytest.skip(results[0].sentence)

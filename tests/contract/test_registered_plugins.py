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
def world() -> Registry:
    return Registry.load(SUBMISSIONS)


def offered() -> Iterator[tuple[str, str]]:
    for kind in HOOK_OF_KIND:
        for name in getattr(world(), f"{kind}s"):
            yield kind, name


def test_no_plugin_is_refused() -> None:
    assert world().problems == []


def long(kind: str, name: str) -> bool:
    """Data sets of 60000 images are read and hashed twice; defenses beside the quick set are
    trained first."""
    if kind == "defense":
        return not world().defenses[name].value.quick
    return kind == "dataset" and name != "digits"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(*o, id="-".join(o), marks=[pytest.mark.slow] if long(*o) else [])
        for o in offered()
    ],
)
def test_every_plugin_keeps_every_law(kind: str, name: str) -> None:
    offer = world().find(kind, name)
    subject = FIXTURES[kind](world(), offer.value)
    results = [run_check(kind, name, law, subject) for law in CHECKS[kind]]
    broken = [f"{r.check}: {r.sentence}" for r in results if r.outcome is CheckOutcome.FAIL]
    assert broken == []
    if all(r.outcome is CheckOutcome.NOT_APPLICABLE for r in results):
        pytest.skip(results[0].sentence)

"""One law on one planted plugin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.contract.check import CheckResult
from bench.contract.runner import CHECKS, FIXTURES, run_check
from bench.plugin import Defense, Loader
from bench.registry.registration import Registration
from bench.registry.registry import Registry


def found(
    world: Registry, kind: str, value: Any, check: str, origin: str = "planted"
) -> CheckResult:
    """One law on one planted plugin."""
    table = {
        **getattr(world, f"{kind}s"),
        value.name: Registration(value, origin, "planted", "0" * 64),
    }
    changed: dict[str, Any] = {f"{kind}s": table}
    registry = replace(world, **changed)
    (law,) = (law for law in CHECKS[kind] if law.name == check)
    return run_check(kind, value.name, law, FIXTURES[kind](registry, value))


def defense(build: Callable[[Loader], Any], **record: Any) -> Defense:
    return Defense("planted", build, **record)

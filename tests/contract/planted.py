"""Runs one check on one plugin made by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.contract.check import CheckResult
from bench.contract.runner import CHECKS, FIXTURES, run_check
from bench.plugin import Defense, Loader
from bench.registry.registration import Registration
from bench.registry.registry import Registry


def run_named_check(
    registry: Registry, kind: str, value: Any, name: str, origin: str = "planted"
) -> CheckResult:
    """The result of the check `name` on a value that is registered under `kind` for it."""
    table = {
        **getattr(registry, f"{kind}s"),
        value.name: Registration(value, origin, "planted", "0" * 64),
    }
    changed: dict[str, Any] = {f"{kind}s": table}
    extended = replace(registry, **changed)
    (check,) = (check for check in CHECKS[kind] if check.name == name)
    return run_check(kind, value.name, check, FIXTURES[kind](extended, value))


def defense(build: Callable[[Loader], Any], **record: Any) -> Defense:
    """A defense named `planted`."""
    return Defense("planted", build, **record)

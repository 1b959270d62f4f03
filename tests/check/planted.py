"""One law on one planted plugin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.check import LAWS, Result
from bench.check.run import SUBJECTS, tried
from bench.plugin import Defense, Shelf
from bench.registry import Offer, Registry


def found(world: Registry, kind: str, value: Any, check: str, origin: str = "planted") -> Result:
    """One law on one planted plugin."""
    table = {**getattr(world, f"{kind}s"), value.name: Offer(value, origin, "planted", "0" * 64)}
    changed: dict[str, Any] = {f"{kind}s": table}
    registry = replace(world, **changed)
    (law,) = (law for law in LAWS[kind] if law.name == check)
    return tried(kind, value.name, law, SUBJECTS[kind](registry, value))


def defense(build: Callable[[Shelf], Any], **record: Any) -> Defense:
    return Defense("planted", build, **record)

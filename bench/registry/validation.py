"""Validates what a plugin registers: types, names, digestible parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.core.errors import PluginError
from bench.core.hashing import canonical
from bench.plugin import (
    OPTIONAL_METHODS,
    Access,
    Dataset,
    Defense,
    MissingLibrary,
    Traits,
)
from bench.registry.submission import NAME_PATTERN
from bench.registry.type_check import mistyped
from bench.threats.fingerprint import parameters_of, short_repr
from bench.threats.threat_model import ThreatModel, describe_set


def why_invalid(kind: str, value: object) -> str:
    """Why this is no offer of its kind; empty when it is one."""
    wrong = (
        mistyped(value, MissingLibrary)
        if isinstance(value, MissingLibrary)
        else _RULES[kind](value)
    )
    if wrong:
        return wrong
    name = value.name  # type: ignore[attr-defined]
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        return f"has the name {name!r}; names are 1 to 64 of a-z, 0-9, '.', '_', '-'"
    return ""


def _is(kind: type) -> Callable[[object], str]:
    """A rule: the value is one of these records."""
    return lambda value: (
        mistyped(value, kind)
        if isinstance(value, kind)
        else f"is {short_repr(value)}, not a {kind.__name__}"
    )


def _has(kind: str, **wanted: Any) -> Callable[[object], str]:
    """A rule: the value has these attributes; `callable` stands for a method."""

    def rule(value: object) -> str:
        if isinstance(value, type):
            return f"is the class {value.__name__}; offer an instance: {value.__name__}()"
        for name in wanted:
            if not hasattr(value, name):
                return f"is {short_repr(value)} without {name!r}, which every {kind} has"
        return _may(value, **wanted)

    return rule


def _may(value: object, **wanted: Any) -> str:
    """Which of these attributes, where it is there at all, is of a wrong type."""
    for name, type_ in wanted.items():
        if not hasattr(value, name):
            continue
        found = getattr(value, name)
        if type_ is callable:
            if not callable(found):
                return f"has {name} = {short_repr(found)}, not a method"
        elif not isinstance(found, type_) or (type_ is int and isinstance(found, bool)):
            return f"has {name} = {short_repr(found)}, not of type {type_.__name__}"
    return ""


_STEPWISE = _has("attack", name=str, needs=Access, steps=int, start=callable, step=callable)


_WHOLE = _has("attack", name=str, needs=Access, run=callable)


_SET = _has(
    "perturbation set",
    name=str, distance=callable, contains=callable, sample=callable, project=callable,
)  # fmt: skip


def _attack(value: Any) -> str:
    whole = Traits.is_external(value)
    wrong = _WHOLE(value) if whole else _STEPWISE(value)
    if wrong:
        return wrong
    if not whole and value.steps < 1:
        return f"has steps = {value.steps}; at least one is needed"
    there = {name: callable for name in OPTIONAL_METHODS if getattr(value, name, None) is not None}
    wrong = _may(value, **there) or mistyped(value, Traits, lists=True)
    return wrong or _nameless(parameters_of, value)


def _threat(value: Any) -> str:
    wrong = _is(ThreatModel)(value)
    if wrong:
        return wrong
    wrong = _SET(value.ball)
    return f"has a ball that {wrong}" if wrong else _nameless(describe_set, value.ball)


def _nameless(named: Callable[[Any], object], value: object) -> str:
    """Why no digest can name it; empty when one can."""
    try:
        named(value)
    except PluginError as error:
        return f"has a parameter without a digest: {error}".rstrip(".")
    return ""


def _certifier(value: object) -> str:
    wrong = _has("certifier", name=str, exact=bool, refuses=callable, certify=callable)(value)
    wrong = wrong or _may(value, cite=str, summary=str, quick=bool)
    if wrong:
        return wrong
    error = getattr(value, "error", 0.0)
    if not isinstance(error, int | float) or not 0 <= error < 1:
        return f"has error = {short_repr(error)}; the probability that a proof is wrong is due"
    if error and value.exact:  # type: ignore[attr-defined]
        return f"is exact and has error = {error}; an exact certifier is never wrong"
    return ""


def _diagnostic(value: object) -> str:
    wrong = _has("diagnostic", name=str, examine=callable)(value)
    return wrong or _may(value, cite=str, summary=str)


def _defense(value: Any) -> str:
    share = value.rejects if isinstance(value, Defense) else None
    if share is not None and not (isinstance(share, float) and 0 < share < 1):
        return f"has rejects = {short_repr(share)}; the share of clean images it rejects is due"
    wrong = _is(Defense)(value)
    if wrong:
        return wrong
    try:
        canonical(dict(value.detail))
    except (TypeError, ValueError, RecursionError):
        return (
            f"has detail = {short_repr(value.detail)}, which JSON cannot carry; "
            "use finite numbers, strings, lists and mappings of them"
        )
    return ""


_RULES: dict[str, Callable[[object], str]] = {
    "dataset": _is(Dataset),
    "threat": _threat,
    "attack": _attack,
    "defense": _defense,
    "certifier": _certifier,
    "diagnostic": _diagnostic,
}

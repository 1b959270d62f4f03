"""Validates what a plugin registers: types, names, digestible parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from bench.core.errors import PluginError
from bench.plugin import (
    OPTIONAL_METHODS,
    Access,
    Dataset,
    Defense,
    MissingLibrary,
    Traits,
    is_shared,
)
from bench.registry.submission import NAME_PATTERN
from bench.threats.fingerprint import parameters_of, short_repr
from bench.threats.threat_model import ThreatModel, describe_set

MAX_STEPS = 1_000_000
"""Of one restart of an attack: a run that makes more does not end in any useful time."""
METHOD = Callable[..., Any]
STRICT = ConfigDict(
    strict=True, arbitrary_types_allowed=True, revalidate_instances="always", from_attributes=True
)
"""No conversions: True is no int, a list is no tuple; records inside a record are checked too."""


def why_invalid(kind: str, value: object) -> str:
    """Why a plugin may not register this value as `kind`, as the end of a sentence; else empty."""
    wrong = why_mistyped(kind, value)
    if wrong:
        return wrong
    name = value.name  # type: ignore[attr-defined]
    if not NAME_PATTERN.fullmatch(name):
        return f"has the name {name!r}; names are 1 to 64 of a-z, 0-9, '.', '_', '-'"
    return ""


def why_mistyped(kind: str, value: object) -> str:
    """What of a value of this kind has a wrong type or digest, whatever its name; else empty."""
    missing = isinstance(value, MissingLibrary)
    return _record(MissingLibrary)(value) if missing else _RULES[kind](value)


def _record(kind: type) -> Callable[[object], str]:
    """A rule: the value is an instance of this dataclass, each field of its declared type."""

    def rule(value: object) -> str:
        if not isinstance(value, kind):
            return f"is {short_repr(value)}, not a {kind.__name__}"
        return _why_mistyped(_fields_of(kind), value)

    return rule


def _attributes(kind: str, **types: Any) -> Callable[[object], str]:
    """A rule: the value is an instance of any class with these attributes."""
    fields: dict[str, Any] = {name: (type_, ...) for name, type_ in types.items()}
    model = create_model(kind, __config__=STRICT, **fields)

    def rule(value: object) -> str:
        if isinstance(value, type):
            return f"is the class {value.__name__}; register an instance: {value.__name__}()"
        for name in types:
            if not hasattr(value, name):
                return f"is {short_repr(value)} without {name!r}, which every {kind} has"
        return _why_mistyped(model, value)

    return rule


@cache
def _fields_of(kind: type) -> type[BaseModel]:
    """The fields of a dataclass, as a model that checks them."""
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {f.name: (hints[f.name], ...) for f in dataclasses.fields(kind)}
    return create_model(kind.__name__, __config__=STRICT, **fields)


@cache
def _attack_options() -> type[BaseModel]:
    """The optional attributes of an attack. A list will do where `Traits` declares a tuple."""
    hints = get_type_hints(Traits)
    absent = Traits.of(object())  # type: ignore[arg-type]
    fields: dict[str, Any] = dict.fromkeys(OPTIONAL_METHODS, (METHOD | None, None))
    for name, hint in hints.items():
        lenient = get_origin(hint) is tuple
        fields[name] = (
            Annotated[hint, Field(strict=False)] if lenient else hint,
            getattr(absent, name),
        )
    return create_model("attack options", __config__=STRICT, **fields)


@cache
def _tool_options() -> type[BaseModel]:
    """The optional attributes of a certifier or a diagnostic."""
    fields: dict[str, Any] = {"cite": (str, ""), "summary": (str, ""), "quick": (bool, True)}
    return create_model("tool options", __config__=STRICT, **fields)


def _why_mistyped(model: type[BaseModel], value: object) -> str:
    """The first attribute of a wrong type, and which type was expected; empty without one."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        return _complaint(error.errors()[0])
    return ""


def _complaint(detail: ErrorDetails) -> str:
    path, found = [str(part) for part in detail["loc"]], short_repr(detail["input"])
    if detail["type"] == "missing":
        return f"has {'.'.join(path[:-1])} = {found}; it has too few items"
    expected = detail["msg"].replace("Input should be", "it should be")
    return f"has {'.'.join(path)} = {found}; {expected}"


_STEPWISE = _attributes("attack", name=str, needs=Access, steps=int, start=METHOD, step=METHOD)
_EXTERNAL = _attributes("attack", name=str, needs=Access, run=METHOD)
_SHARED = _attributes("attack", name=str, needs=Access, fit=METHOD)
_SET = _attributes(
    "perturbation set",
    name=str, distance=METHOD, contains=METHOD, sample=METHOD, project=METHOD,
)  # fmt: skip
_CERTIFIER = _attributes("certifier", name=str, exact=bool, refuses=METHOD, certify=METHOD)
_DIAGNOSTIC = _attributes("diagnostic", name=str, examine=METHOD)


def _attack(value: Any) -> str:
    if is_shared(value):
        wrong = _SHARED(value)
        return (
            wrong or _why_mistyped(_attack_options(), value) or _why_no_digest(parameters_of, value)
        )
    external = Traits.is_external(value)
    wrong = _EXTERNAL(value) if external else _STEPWISE(value)
    if wrong:
        return wrong
    if not external and value.steps < 1:
        return f"has steps = {value.steps}; at least one is needed"
    if not external and value.steps > MAX_STEPS:
        return f"has steps = {value.steps}; at most {MAX_STEPS} are allowed"
    return _why_mistyped(_attack_options(), value) or _why_no_digest(parameters_of, value)


def _threat(value: Any) -> str:
    if isinstance(value, ThreatModel):
        wrong = _SET(value.ball)
        if wrong:
            return f"has a ball that {wrong}"
    return _record(ThreatModel)(value) or _why_no_digest(describe_set, value.ball)


def _why_no_digest(describe: Callable[[Any], object], value: object) -> str:
    """Why no digest can name a value's parameters; empty when one can."""
    try:
        describe(value)
    except PluginError as error:
        return f"has a parameter without a digest: {error}".rstrip(".")
    return ""


def _certifier(value: object) -> str:
    wrong = _CERTIFIER(value) or _why_mistyped(_tool_options(), value)
    if wrong:
        return wrong
    error = getattr(value, "error", 0.0)
    if not isinstance(error, int | float) or not 0 <= error < 1:
        return f"has error = {short_repr(error)}; it should be a probability below 1"
    if error and value.exact:  # type: ignore[attr-defined]
        return f"is exact and has error = {error}; an exact certifier has error = 0"
    return ""


def _diagnostic(value: object) -> str:
    return _DIAGNOSTIC(value) or _why_mistyped(_tool_options(), value)


def _defense(value: Any) -> str:
    share = value.rejects if isinstance(value, Defense) else None
    if share is not None and not (isinstance(share, float) and 0 < share < 1):
        return f"has rejects = {short_repr(share)}; it should be the share of clean images rejected"
    return _record(Defense)(value)


_RULES: dict[str, Callable[[object], str]] = {
    "dataset": _record(Dataset),
    "threat": _threat,
    "attack": _attack,
    "defense": _defense,
    "certifier": _certifier,
    "diagnostic": _diagnostic,
}

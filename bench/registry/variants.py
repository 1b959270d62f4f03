"""Variants of registered attacks: `pgd[steps=100,restarts=5]` is PGD with two parameters set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bench.core.errors import BenchError
from bench.core.variant_names import variant_name
from bench.plugin import Attack
from bench.registry.registration import Registration
from bench.registry.submission import did_you_mean
from bench.registry.validation import why_mistyped
from bench.threats.fingerprint import short_repr

_FIXED = {"name", "attack", "source", "version", "cite", "summary", "minimises"}
"""Fields that say what an attack is; another value would be another attack, not a variant."""


def variant(
    registration: Registration[Attack], settings: Mapping[str, Any]
) -> Registration[Attack]:
    """The registration of an attack with other parameters, under a name that states them.

    Args:
        registration: the attack.
        settings: values by parameter; text is read as the parameter's type.

    Returns:
        A new registration; the attack itself where every value is the one that it has.

    Raises:
        BenchError: it has no such parameter, or the value has another type or is refused.
    """
    attack = registration.value
    values = parameter_values(attack, settings)
    changed = {name: value for name, value in values.items() if value != getattr(attack, name)}
    if not changed:
        return registration
    name = variant_name(attack.name, changed)
    made: Any = replace(attack, **changed)  # type: ignore[type-var]
    # Random numbers are keyed by the name, and for many attacks it is an attribute of the class.
    object.__setattr__(made, "name", name)
    wrong = why_mistyped("attack", made)
    if wrong:
        raise BenchError(f"the attack {name} {wrong}.")
    return replace(registration, value=made)


def parameter_values(attack: Attack, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values of an attack's parameters, text read as their types, in the order of the parameters.

    Raises BenchError where it has no such parameter, or a value has another type.
    """
    kinds = parameter_types(attack)
    values = {name: _value(attack, kinds, name, value) for name, value in settings.items()}
    return {name: values[name] for name in kinds if name in values}


def parameter_types(attack: Attack) -> dict[str, Any]:
    """The parameters of an attack that a variant may set, with their types, in their order."""
    if not hasattr(attack, "__dataclass_fields__"):
        return {}
    hints = get_type_hints(type(attack))
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(attack) if field.init}  # type: ignore[arg-type]
    return {n: kind for n, kind in kinds.items() if n not in _FIXED and _is_plain(kind)}


def _is_plain(kind: Any) -> bool:
    """Whether text can name every value of a type."""
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    return kind in (bool, int, float, str)


def _value(attack: Attack, kinds: Mapping[str, Any], name: str, value: Any) -> Any:
    """A value as the type of its parameter. Raises BenchError where it is none."""
    if name not in kinds:
        hint = did_you_mean(name, list(kinds))
        raise BenchError(f"{attack.name} has no parameter {name!r} to set{hint}.")
    try:
        # A number is read from text; a bool given for a number, or 0.5 for an int, is refused.
        reader = TypeAdapter(kinds[name], config=ConfigDict(allow_inf_nan=False))
        return reader.validate_python(value, strict=not isinstance(value, str))
    except ValidationError as error:
        expected = error.errors()[0]["msg"].replace("Input should be", "it should be")
        raise BenchError(
            f"the parameter {name} of {attack.name} came as {short_repr(value)}; {expected}."
        ) from error

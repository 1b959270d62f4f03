"""Perturbation sets in frames: a built-in set is its name and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, get_type_hints

from bench.core.errors import PluginError
from bench.threats.norms import PerturbationSet
from bench.threats.nuisance import Nuisance
from bench.threats.threat_model import BUILT_IN_SETS, NAMED_SETS

ENCODED_SETS: dict[str, type[Any]] = {kind.name: kind for kind in (*BUILT_IN_SETS, *NAMED_SETS)}
ACCEPTED_TYPES = {Fraction: (str,), float: (float, int), int: (int,), str: (str,)}
"""Type of a parameter -> the types of its value in a frame."""
LONGEST_NUMBER = 100
"""Characters of a fraction in a frame."""


def is_encodable(perturbation_set: PerturbationSet) -> bool:
    """Whether a set is built in: of exactly the built-in class, not of a subclass."""
    return ENCODED_SETS.get(perturbation_set.name) is type(perturbation_set)


def set_values(perturbation_set: PerturbationSet) -> dict[str, Any]:
    """The name and the parameters of a built-in set as JSON values."""
    values = {name: getattr(perturbation_set, name) for name in _types(type(perturbation_set))}
    values = {k: str(v) if isinstance(v, Fraction) else v for k, v in values.items()}
    return {"name": perturbation_set.name, **values}


def encode_set(perturbation_set: PerturbationSet, title: str) -> dict[str, Any]:
    """The values of a built-in set, for the attack named `title`.

    Raises PluginError for a plugin's set, because its code is not in the sandbox.
    """
    if not is_encodable(perturbation_set):
        raise PluginError(
            f"{title} runs in the sandbox, which supports the sets {', '.join(ENCODED_SETS)} "
            f"only; {perturbation_set.name} is a set of a plugin. --allow-unsandboxed runs the "
            "attack without the sandbox."
        )
    return set_values(perturbation_set)


def decode_set(encoded: dict[str, Any]) -> PerturbationSet:
    """The set of the values of `set_values`.

    Raises ValueError for unknown, missing or invalid values, LookupError for an unknown name,
    ArithmeticError for a fraction without value.
    """
    kind = ENCODED_SETS[encoded["name"]]
    values = {name: value for name, value in encoded.items() if name != "name"}
    decoded: PerturbationSet = _decoded(kind, kind.name, values)
    return decoded


def decode_nuisance(encoded: Mapping[str, Any]) -> Nuisance:
    """The nuisance of its parameters; raises ValueError for unknown, missing or invalid values."""
    decoded: Nuisance = _decoded(Nuisance, "a nuisance", encoded)
    return decoded


def _decoded(kind: type[Any], title: str, values: Mapping[str, Any]) -> Any:
    """An object of a class whose fields are numbers; raises ValueError, ArithmeticError."""
    types = _types(kind)
    if values.keys() != types.keys():
        raise ValueError(f"{title} has the parameters {', '.join(types)}")
    for name, value in values.items():
        if type(value) not in ACCEPTED_TYPES[types[name]] or len(str(value)) > LONGEST_NUMBER:
            raise ValueError(f"{name} of {title} is {str(value)[:40]!r}")
    return kind(**{k: types[k](value) for k, value in values.items()})


def _types(kind: type[Any]) -> dict[str, type[Any]]:
    """Parameter -> type, for a set whose fields are numbers."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}

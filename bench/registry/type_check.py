"""A record's fields, held against the types that they were declared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from bench.threats.fingerprint import short_repr

UNIONS = (Union, UnionType)


def mistyped(value: object, kind: type, path: str = "", *, lists: bool = False) -> str:
    """Which field that `kind` declares holds something else in `value`; empty when none does.

    A field that `value` does not have is passed over. Records within are looked at in turn. With
    `lists` a list will do where a tuple is due.
    """
    for name, hint in declared(kind).items():
        if not hasattr(value, name):
            continue
        found = getattr(value, name)
        found = tuple(found) if lists and isinstance(found, list) else found
        if not fits(found, hint):
            due = kind.__annotations__[name]
            return f"has {path}{name} = {short_repr(found)}, not of type {due}"
        for item in found if isinstance(found, tuple) else (found,):
            for record in records(hint):
                wrong = mistyped(item, record, f"{path}{name}.") if fits(item, record) else ""
                if wrong:
                    return wrong
    return ""


@cache
def declared(kind: type) -> Mapping[str, Any]:
    """Field name -> type."""
    return get_type_hints(kind)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of that type, as far as this can be seen without calling anything."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        return any(fits(value, part) for part in inner)
    if origin is tuple:
        return isinstance(value, tuple) and _all_fit(value, inner)
    if hint is Any or getattr(hint, "_is_protocol", False):
        return True  # of verbs; whoever offers one is asked for them elsewhere
    if origin is Callable:
        return callable(value)
    if isinstance(value, bool) and hint in (int, float):
        return False
    if hint is float:
        return isinstance(value, int | float)
    kind: type = origin or hint
    return isinstance(value, kind)


def _all_fit(values: tuple[object, ...], hints: tuple[Any, ...]) -> bool:
    """Whether a tuple is of that shape: `X, ...` for any number of the same."""
    each = hints[:1] * len(values) if hints[-1] is Ellipsis else hints
    return len(values) == len(each) and all(map(fits, values, each))


def records(hint: Any) -> Iterator[type]:
    """The record types that a hint names: itself, in a union, or in a tuple."""
    if get_origin(hint) in (*UNIONS, tuple):
        for part in get_args(hint):
            yield from records(part)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint

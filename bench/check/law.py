"""A law, and what was found of it: the words of the plugin contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

S = TypeVar("S")


class Outcome(StrEnum):
    """What a check came to."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Result:
    """One check of one plugin."""

    kind: str
    name: str
    """The plugin's."""
    check: str
    outcome: Outcome
    sentence: str
    """The law where it holds; else what came, what was expected, what to do."""


class DoesNotApply(Exception):  # noqa: N818 - an answer, not an error
    """Raised by a law that has nothing to say of this plugin; the text says why."""


@dataclass(frozen=True)
class Law(Generic[S]):
    """A promise that every plugin of a kind keeps."""

    holds: Callable[[S], str]
    """What is wrong, as a sentence; empty when nothing is."""

    @property
    def name(self) -> str:
        """`bounded-memory` for the function `bounded_memory`."""
        return self.holds.__name__.replace("_", "-")

    @property
    def text(self) -> str:
        """The law in words: the docstring's first line."""
        return inspect.getdoc(self.holds).splitlines()[0]  # type: ignore[union-attr]


def laws(*functions: Callable[[Any], str]) -> tuple[Law[Any], ...]:
    """A list of laws, in the order in which they are checked."""
    return tuple(Law(function) for function in functions)

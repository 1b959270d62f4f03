"""A law, and what was found of it: the words of the plugin contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

S = TypeVar("S")


class CheckOutcome(StrEnum):
    """What a check came to."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class CheckResult:
    """One check of one plugin."""

    kind: str
    name: str
    """The plugin's."""
    check: str
    outcome: CheckOutcome
    sentence: str
    """The law where it holds; else what came, what was expected, what to do."""


class DoesNotApply(Exception):  # noqa: N818 - an answer, not an error
    """Raised by a law that has nothing to say of this plugin; the text says why."""


@dataclass(frozen=True)
class Check(Generic[S]):
    """A promise that every plugin of a kind keeps."""

    function: Callable[[S], str]
    """What is wrong, as a sentence; empty when nothing is."""

    @property
    def name(self) -> str:
        """`bounded-memory` for the function `bounded_memory`."""
        return self.function.__name__.replace("_", "-")

    @property
    def sentence(self) -> str:
        """The law in words: the docstring's first line."""
        return inspect.getdoc(self.function).splitlines()[0]  # type: ignore[union-attr]


def checks_of(*functions: Callable[[Any], str]) -> tuple[Check[Any], ...]:
    """A list of laws, in the order in which they are checked."""
    return tuple(Check(function) for function in functions)

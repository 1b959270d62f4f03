"""Checks of the plugin contract and their results."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

Fixture = TypeVar("Fixture")


class CheckOutcome(StrEnum):
    """The outcome of a check."""

    PASS = "pass"
    FAIL = "fail"
    WARNING = "warning"
    """What the plugin does is allowed, and weaker than it may seem."""
    NOT_APPLICABLE = "not applicable"
    NOT_RUN = "not run"
    """An earlier check has failed on which it depends, or something is missing here."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check on one plugin."""

    kind: str
    name: str
    """Name of the plugin."""
    check: str
    """Name of the check."""
    outcome: CheckOutcome
    sentence: str
    """What the check requires, where it passes; else what came, what was expected, what to do."""


class DoesNotApply(Exception):  # noqa: N818 - a result, not an error
    """Raised by a check that does not apply to a plugin; the message is the reason."""


@dataclass(frozen=True)
class Check(Generic[Fixture]):
    """A requirement on every plugin of a kind."""

    function: Callable[[Fixture], str]
    """Returns what is wrong, as a sentence; empty where the requirement is met."""
    given_name: str = ""
    """The check's name for users, where it is not that of the function."""
    warns: bool = False
    """Whether what is wrong is a warning: the plugin may be used as it is."""
    decides: bool = False
    """Where it does not pass, the checks after it are not run."""
    stands_alone: bool = False
    """Whether it is run all the same, because it reads declarations only."""

    @property
    def name(self) -> str:
        """The check's name for users: `bounded-memory` for the function `bounded_memory`."""
        return self.given_name or self.function.__name__.replace("_", "-")

    @property
    def sentence(self) -> str:
        """The requirement in words: the first line of the function's docstring."""
        return inspect.getdoc(self.function).splitlines()[0]  # type: ignore[union-attr]


def checks_of(
    *functions: Callable[[Any], str], decide: bool = False, stand_alone: bool = False
) -> tuple[Check[Any], ...]:
    """Make checks of functions, in the order in which they are run."""
    return tuple(
        Check(function, decides=decide, stands_alone=stand_alone) for function in functions
    )

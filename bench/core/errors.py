"""Exceptions of the harness, each with an exit code, and how an exception reads in a sentence."""

from __future__ import annotations

from typing import TypeVar

from bench.core.statistics import clopper_pearson as clopper_pearson


class BenchError(Exception):
    """A mistake with a sentence: what came, what was expected, what to do."""

    exit_code = 2


class PluginError(BenchError):
    """A plugin did what its contract forbids. The cell fails, the matrix goes on."""

    exit_code = 3


class UnavailableError(BenchError):
    """The environment cannot do this: no device, no folder, a database from the future."""

    exit_code = 5


T = TypeVar("T")


def require_type(value: object, kind: type[T], what: str) -> T:
    """The value, known to be of this kind; PluginError where it is not, or is missing."""
    if not isinstance(value, kind):
        raise PluginError(f"{what} is {type(value).__name__}; {kind.__name__} was expected.")
    return value


PLUGIN_EXCEPTIONS = (Exception, SystemExit)
"""What a stranger's module may raise when it is imported, asked or told: anything. It is caught in
`_safely`, and only there, because one broken plugin must not take the others down; the sentence
goes to `problems`. KeyboardInterrupt still ends the program."""


def error_text(error: BaseException) -> str:
    """An exception as the end of a sentence: one line, its type in front."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    if isinstance(error, BenchError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""Exceptions of the harness, each with an exit code, and how an exception reads in a sentence."""

from __future__ import annotations

from typing import TypeVar

from bench.core.visible_text import encodable_text

INTERRUPTED = 130
"""Exit code of a command that a signal stopped; the same command continues."""


class BenchError(Exception):
    """An error with a message: what came, what was expected, what to do."""

    exit_code = 2


class PluginError(BenchError):
    """A plugin broke its contract. The cell fails, the other cells are evaluated."""

    exit_code = 3


class UnavailableError(BenchError):
    """The environment lacks something: a device, a folder, a database that this version reads."""

    exit_code = 5


class StorageError(UnavailableError):
    """The database or a disk cannot be used: no cell is at fault, and the run can be resumed."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary
        """Whether it may end by itself or by what the message asks for, so that a run waits."""


T = TypeVar("T")


def require_type(value: object, kind: type[T], what: str) -> T:
    """The value, typed as `kind`; raises PluginError where it has another type or is missing."""
    if not isinstance(value, kind):
        raise PluginError(f"{what} is {type(value).__name__}; {kind.__name__} was expected.")
    return value


PLUGIN_EXCEPTIONS = (Exception, SystemExit)
"""Exceptions that the code of a plugin may raise. The registry catches them in one place, so that a
broken plugin is reported and the others are loaded; KeyboardInterrupt still ends the program."""


def error_text(error: BaseException) -> str:
    """The message of an exception on one line; its type comes first unless it is a BenchError."""
    text = " ".join(encodable_text(str(error)).split())[:300].rstrip(".")
    if isinstance(error, BenchError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

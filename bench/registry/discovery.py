"""Finds plugin modules: built-in, installed through entry points, and submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Final

import pluggy

import plugins
from bench.core.errors import BenchError
from bench.core.isolation import Isolation
from bench.registry.loader import module_from_source
from bench.registry.submission import Submission
from bench.threats.fingerprint import source_digest

REVIEWED_SUBMISSIONS: Final[Mapping[str, str]] = {
    "gaussian-noise": "5a303ae7f2dce08a7f29c3578cbc2cadfacf041c8a0b825413a203caf83e83a8",
}
"""Reviewed submissions that ship with the project: name -> digest of their files."""


@dataclass(frozen=True)
class Plugin:
    """A plugin module, with its origin and isolation."""

    module: ModuleType
    origin: str
    source: str
    submission: Submission | None = None
    isolation: Isolation = Isolation.IN_PROCESS

    @property
    def name(self) -> str:
        """Its name in messages and in pluggy."""
        return (
            f"submission {self.submission.card.name}" if self.submission else self.module.__name__
        )


def load_built_in(name: str) -> Plugin:
    """Import a module of the package `plugins`."""
    module = import_module(name)
    return Plugin(module, "built-in", source_digest(module))


def load_installed(point: EntryPoint) -> Plugin:
    """Import the module that an entry point of an installed package names.

    Raises BenchError where it names no module, or a built-in one.
    """
    module = point.load()
    if not isinstance(module, ModuleType):
        raise BenchError(
            f"it names {point.value}, which is not a module; "
            "name the module that holds the functions marked @hookimpl"
        )
    if module.__name__.startswith(f"{plugins.__name__}."):
        raise BenchError(
            f"it names {module.__name__}, which is built in; name a module of your own package"
        )
    return Plugin(module, "entry-point", source_digest(module))


def load_submission(submission: Submission) -> Plugin:
    """Run a submission's plugin.py, from exactly the bytes that its digest covers."""
    content = submission.content("plugin.py")
    isolation = Isolation.IN_PROCESS if is_reviewed(submission) else Isolation.UNSANDBOXED
    module = module_from_source(content, submission.folder / "plugin.py")
    return Plugin(module, "submission", submission.files["plugin.py"], submission, isolation)


def hook_values(impl: pluggy.HookImpl) -> list[Any]:
    """All values that a hook implementation returns or yields."""
    values: Any = impl.function()
    return list(values or ())


def is_reviewed(submission: Submission) -> bool:
    """Whether the submission ships with the project and its files are the reviewed ones."""
    return REVIEWED_SUBMISSIONS.get(submission.card.name) == submission.digest

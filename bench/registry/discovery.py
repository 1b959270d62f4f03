"""Finds plugin modules: built-in, installed through entry points, and submitted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pluggy

import plugins
from bench.core.errors import BenchError
from bench.registry.loader import module_from_source
from bench.registry.submission import Submission
from bench.threats.fingerprint import source_digest

REVIEWED_SUBMISSIONS: Final[Mapping[str, str]] = {
    "gaussian-noise": "0c54d5e0112a4201d18d6bf32503a0f54e17514e296f41c68bcd11d79983e998",
}
"""Submissions that belong to the project, reviewed file by file: name -> digest."""


IN_PROCESS, SANDBOXED, UNSANDBOXED = "in-process", "sandboxed", "unsandboxed"
"""How far code is locked in: not, for it is known; by walls; not, at the user's word."""


@dataclass(frozen=True)
class Plugin:
    """A module that came through the door."""

    module: ModuleType
    origin: str
    source: str
    entry: Submission | None = None
    tier: str = IN_PROCESS
    """How far its code is locked in."""

    @property
    def name(self) -> str:
        """What sentences call it."""
        return f"submission {self.entry.card.name}" if self.entry else self.module.__name__


def submissions_folder() -> Path:
    """Where entries lie: $BENCH_SUBMISSIONS, else ./submissions."""
    return Path(os.environ.get("BENCH_SUBMISSIONS", "submissions"))


def built_in(name: str) -> Plugin:
    """A module of the package `plugins`."""
    module = import_module(name)
    return Plugin(module, "built-in", source_digest(module))


def installed(point: EntryPoint) -> Plugin:
    """A module that an installed package names in its metadata."""
    module = point.load()
    if not isinstance(module, ModuleType):
        raise BenchError(
            f"it names {point.value}, which is no module; "
            "name the module that holds the functions marked @hookimpl"
        )
    if module.__name__.startswith(f"{plugins.__name__}."):
        raise BenchError(
            f"it names {module.__name__}, which is built in; "
            "point it at a module of your own package"
        )
    return Plugin(module, "entry-point", source_digest(module))


def submitted(entry: Submission) -> Plugin:
    """An entry's plugin.py, run from exactly the bytes whose digest was read."""
    path = entry.folder / "plugin.py"
    content = entry.content("plugin.py")
    reviewed = is_reviewed(entry)
    tier = IN_PROCESS if reviewed else UNSANDBOXED
    return Plugin(
        module_from_source(content, path), "submission", entry.files["plugin.py"], entry, tier
    )


def hook_values(impl: pluggy.HookImpl) -> list[Any]:
    """All that a question's answer yields; a generator runs here, to its end."""
    offered: Any = impl.function()
    return list(offered or ())


def is_reviewed(submission: Submission) -> bool:
    """True where the submission ships with the project and its files are the reviewed ones."""
    return REVIEWED_SUBMISSIONS.get(submission.card.name) == submission.digest

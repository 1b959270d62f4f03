"""All hostile submissions."""

from __future__ import annotations

from tests.sandbox.hostile.case import HostileCase
from tests.sandbox.hostile.cheats import ATTACKS, STATE
from tests.sandbox.hostile.frames import EXITS, PROTOCOL
from tests.sandbox.hostile.processes import PROCESSES
from tests.sandbox.hostile.python_tricks import ARCHIVES, TRICKS
from tests.sandbox.hostile.resources import MEMORY, OUTPUT, TIMES
from tests.sandbox.hostile.surroundings import FILES, NETWORK, SECRETS

CASES: tuple[HostileCase, ...] = (
    *PROCESSES, *MEMORY, *TIMES, *OUTPUT, *FILES, *NETWORK, *SECRETS, *PROTOCOL, *EXITS, *TRICKS,
    *ARCHIVES, *STATE, *ATTACKS,
)  # fmt: skip


QUICK = ("escapes-in-an-error",)
"""Cases that the quick tests play."""
SLOW = (
    "fork-bomb", "daemon-by-double-fork", "traces-and-new-namespaces", "memory-of-children",
    "endless-loop", "fills-its-folder", "writes-outside-its-folder", "sockets-of-every-family",
    "environments-and-memories", "labels-in-the-callers-memory", "shape-beyond-any-integer",
    "patches-torch", "returns-other-images",
)  # fmt: skip
"""Cases that the slow tests play: one of most families."""


def named(*names: str) -> list[HostileCase]:
    """The cases of these names."""
    return [case for case in CASES if case.name in names]

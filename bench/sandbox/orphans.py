"""Ends processes that bubblewrap leaves where the harness is killed while a worker starts.

Bubblewrap's first process starts a second one in a new process namespace, prepares it and tells it
to go on; the second asks the kernel to be killed with the first. Where the first is killed before
that, together with the harness, the second stays: it waits without end, or it starts the worker,
which finds its socket closed and ends. In neither case does code of a submission run.
"""

from __future__ import annotations

import functools
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

PROGRAM = "bwrap"
WORKER = b"bench.sandbox.worker"
"""Part of the command line of every worker."""
PARENT = re.compile(r"^PPid:\s+(\d+)", re.MULTILINE)
NAMESPACES = re.compile(r"^NSpid:(.*)", re.MULTILINE)


def orphans() -> list[int]:
    """Process ids of bubblewrap's second processes of workers whose first process has ended."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _is_orphan(folder)]


def _is_orphan(folder: Path) -> bool:
    with suppress(OSError):  # it has ended meanwhile
        if _name(folder) != PROGRAM or folder.stat().st_uid != os.geteuid():
            return False
        status = (folder / "status").read_text()
        parent, ids = PARENT.search(status), NAMESPACES.search(status)
        if parent is None or ids is None or len(ids[1].split()) < 2:
            return False  # it is bubblewrap's first process
        if WORKER not in (folder / "cmdline").read_bytes():
            return False
        with suppress(OSError):
            return _name(folder.with_name(parent[1])) != PROGRAM
        return True
    return False


def _name(folder: Path) -> str:
    return (folder / "comm").read_text().strip()


def end_orphans() -> None:
    """Kill every orphan."""
    for process in orphans():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@functools.cache
def end_orphans_once() -> None:
    """Kill every orphan, at the first call in this process only."""
    end_orphans()

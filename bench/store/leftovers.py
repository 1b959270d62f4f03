"""Files of processes that were killed as they wrote, recognised by the process they name."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bench.store.process_id import is_elsewhere, is_gone, process_id

PARTIAL = ".partial"
ELSEWHERE_SECONDS = 3600.0
"""A file of a process of another host, or of this one before it was started again, is left behind
when it has not changed for so long: a run waits half an hour for a disk and as long for a server.
"""


def partial_path(path: Path) -> Path:
    """Where this process writes a file before it is renamed to `path`."""
    return path.with_name(f"{path.name}.{process_id()}{PARTIAL}")


def owned_prefix(prefix: str) -> str:
    """The beginning of a temporary folder's name that names this process.

    >>> owned_prefix(".incoming-").startswith(".incoming-")
    True
    """
    return f"{prefix}{process_id()}~"


def remove_partial_files(folders: Iterable[Path]) -> list[Path]:
    """Remove the partial files in these folders whose process has ended; returns them."""
    found = [file for folder in folders for file in folder.glob(f"*{PARTIAL}")]
    gone = [file for file in found if _is_left_by_dead_process(file)]
    for file in gone:
        with suppress(OSError):
            file.unlink()
    return gone


def abandoned_folders(folder: Path, prefix: str) -> list[Path]:
    """The temporary folders whose names begin with `owned_prefix` of a process that has ended."""
    found = sorted(folder.glob(f"{prefix}*~*"))
    return [path for path in found if is_gone(path.name.removeprefix(prefix).rpartition("~")[0])]


def remove_folder(folder: Path) -> None:
    """Remove a temporary folder; what cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


def is_left(file: Path, owner: str) -> bool:
    """Whether the process that a file names has ended, as far as that can be told here."""
    if is_gone(owner):
        return True
    try:
        return is_elsewhere(owner) and time.time() - file.stat().st_mtime > ELSEWHERE_SECONDS
    except OSError:  # it was removed meanwhile
        return False


def _is_left_by_dead_process(file: Path) -> bool:
    # The owner follows the name and the suffix of the file, which may hold dots as the owner does.
    parts = file.name.removesuffix(PARTIAL).split(".")
    owners = (".".join(parts[first:]) for first in range(1, len(parts)))
    return any(is_left(file, owner) for owner in owners)

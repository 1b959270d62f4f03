"""Files of exact images between their writing and the commit of the row that names them.

A writer marks such a file by an empty one beside it, whose name holds the database and the process,
and removes all marks of the file once the row is committed. So a killed process leaves its mark,
and the next start removes the file unless a row names it: files without a mark, which may belong to
another database, stay. A lock on the folder keeps a file from being removed between the moment at
which a writer finds it there and its commit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from bench.store.leftovers import is_left
from bench.store.process_id import process_id

if sys.platform != "win32":
    import fcntl

LOCK, MARK = ".lock", ".uncommitted"


class UncommittedFile:
    """A file that no committed row names yet; others do not remove it inside this context."""

    def __init__(self, path: Path, database: str) -> None:
        """`path` is named by its digest in a subfolder of the folder of images."""
        self.path = path
        self.mark = path.with_name(f"{path.stem}.{database}.{process_id()}{MARK}")
        self._lock: int | None = None

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """Mark the file before it is written, or used where it is there; raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = _open_lock(self.path.parent.parent, exclusive=False)
        self.mark.touch()

    def committed(self) -> None:
        """Remove all marks of the file: a committed row names it."""
        for mark in _marks_of(self.path):
            with suppress(OSError):
                mark.unlink()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)


def remove_uncommitted_files(
    folder: Path, database: str, named: Callable[[Collection[str]], Collection[str]]
) -> list[Path]:
    """Remove the files that dead writers of a database have marked and no row names; returns them.

    `named` gets digests and returns those that a row of the database names, once no transaction
    that may still name one is open. Where another process writes images just now, nothing happens.
    """
    if not any(_left_marks(folder, database)):
        return []
    removed = []
    with _exclusive_lock(folder) as held:
        marks = list(_left_marks(folder, database)) if held else []
        committed = named({mark.name.partition(".")[0] for mark in marks}) if marks else ()
        for mark in marks:
            digest = mark.name.partition(".")[0]
            path = mark.with_name(f"{digest}.safetensors")
            with suppress(OSError):
                # Another mark is of another writer, which may have committed in its database.
                if digest not in committed and _marks_of(path) == [mark] and path.exists():
                    path.unlink()
                    removed.append(path)
                mark.unlink()
    return removed


def _marks_of(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.stem}.*{MARK}"))


def _left_marks(folder: Path, database: str) -> Iterator[Path]:
    """The marks of writers of a database that have ended."""
    for mark in folder.glob(f"??/*.{database}.*{MARK}"):
        owner = mark.name.removesuffix(MARK).split(".", 2)[2]
        if is_left(mark, owner):
            yield mark


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[bool]:
    """Whether no other process writes images to the folder; none begins to inside."""
    lock = _open_lock(folder, exclusive=True)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _open_lock(folder: Path, *, exclusive: bool) -> int | None:
    """A descriptor with a lock of the folder, which ends when it is closed; None without a lock.

    A shared lock is waited for. There is none where the system or the disk has no locks.
    """
    if sys.platform == "win32":
        return None
    opened = -1
    try:
        opened = os.open(folder / LOCK, (os.O_RDWR if exclusive else os.O_RDONLY) | os.O_CREAT)
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except OSError:
        if opened >= 0:
            os.close(opened)
        return None
    return opened

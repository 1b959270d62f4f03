"""Memory, CPU time and files of a worker's processes, as the harness reads them from /proc.

Nothing here asks the worker. What a process may hide (its mappings, by `prctl`) is replaced by a
larger number that it cannot hide.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import psutil

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # per CPU second


RESIDENT = re.compile(rb"^(?:VmRSS|VmSwap|VmPTE):\s+(\d+)", re.MULTILINE)
PAGE_TABLES = re.compile(rb"^VmPTE:\s+(\d+)", re.MULTILINE)
PROPORTIONAL = re.compile(rb"^(?:Pss|SwapPss):\s+(\d+)", re.MULTILINE)
"""Fields of a file in /proc, in kB."""


class Scratch(NamedTuple):
    """What a worker holds in /tmp."""

    bytes: int
    files: int


def family(pid: int) -> list[int]:
    """Process ids of a process and its descendants, parents first."""
    found = [pid]
    for member in found:  # grows
        found += _children(member)
    return found


def _children(pid: int) -> list[int]:
    """Process ids of the children of a process; empty where it has ended."""
    folder, found, listed = f"/proc/{pid}/task", b"", False
    with suppress(OSError):
        for thread in os.listdir(folder):  # noqa: PTH208  # a path for each costs too much here
            with suppress(OSError):  # the thread may have ended meanwhile
                found += _content(f"{folder}/{thread}/children")
                listed = True
    if not listed:  # it has ended, or this kernel has no such list
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return [int(child) for child in found.split()]


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # files of /proc have no size
        return file.read()


def memory_of(pid: int, limit: int = 0) -> int:
    """Bytes of memory of a process and its descendants, with swapped pages and page tables.

    Beyond `limit` shared pages are counted once; below it, where it makes no difference and would
    take milliseconds, once for each process.
    """
    members = family(pid)
    resident = [_sum_of_fields(member, "status", RESIDENT) for member in members]
    if sum(resident) <= limit:
        return sum(resident)
    pairs = zip(members, resident, strict=True)
    return sum(_proportional(member) or most for member, most in pairs)


def _proportional(pid: int) -> int:
    """Bytes of a process, of each shared page its share; 0 where this cannot be read."""
    shares = _sum_of_fields(pid, "smaps_rollup", PROPORTIONAL)
    return shares and shares + _sum_of_fields(pid, "status", PAGE_TABLES)


def _sum_of_fields(pid: int, file: str, fields: re.Pattern[bytes]) -> int:
    """Sum of these fields in kB of a file in /proc, in bytes; 0 where it cannot be read."""
    try:
        return sum(map(int, fields.findall(_content(f"/proc/{pid}/{file}")))) << 10
    except OSError:
        return 0


def scratch_of(pid: int, size: int) -> Scratch:
    """What is in /tmp of a sandbox, whose first process has this id; zeros where it has none.

    Args:
        pid: process outside, whose descendants are inside.
        size: bytes of the file system at /tmp, by which it is known.
    """
    for member in family(pid)[1:]:
        with suppress(OSError):
            found = os.statvfs(f"/proc/{member}/root/tmp")
            if found.f_blocks * found.f_frsize == size:
                used = (found.f_blocks - found.f_bfree) * found.f_frsize
                return Scratch(used, found.f_files - found.f_ffree)
    return Scratch(0, 0)


class CpuMeter:
    """CPU seconds of a process and its descendants, the ended ones included; never decreases."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.own: dict[tuple[int, bytes], int] = {}
        """(process id, start) -> ticks of that process alone, when it was last seen."""
        self.largest = 0
        self.lock = threading.Lock()

    def seconds(self) -> float:
        """CPU seconds so far.

        The larger of two sums, each of which may miss time and never counts it twice: of all
        processes ever seen, and of the present ones with the children that they waited for.
        """
        with self.lock:
            with_children = 0
            for member, start, own, children in _times(family(self.pid)):
                self.own[member, start] = own
                with_children += own + children
            self.largest = max(self.largest, with_children, sum(self.own.values()))
            return self.largest / TICKS


def _times(members: list[int]) -> Iterator[tuple[int, bytes, int, int]]:
    """(process id, start, own ticks, ticks of ended children) of each process that exists."""
    for member in members:
        try:
            fields = _content(f"/proc/{member}/stat").rpartition(b")")[2].split()
        except OSError:
            continue
        user, system, of_children, in_children = map(int, fields[11:15])
        yield member, fields[19], user + system, of_children + in_children

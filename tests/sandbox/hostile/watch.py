"""Measures the processes that a case starts, and finds what it has left behind."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from bench.sandbox import process
from tests.sandbox.hostile.surroundings import MARK

INTERVAL = 0.4  # seconds between two measurements
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096  # bytes


class ProcessWatch(threading.Thread):
    """Records every process below this one, and the largest memory of a worker and the machine."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="measures the workers")
        self.seen: dict[int, float] = {}
        """Process id -> time of its creation."""
        self.peak = 0
        """Bytes of a worker with its descendants; shared pages are counted once."""
        self.idle = machine_memory()
        self.machine_peak = 0
        """Bytes by which the memory in use on the machine has grown."""
        self.ended = threading.Event()

    def run(self) -> None:
        """Measure until `stop` is called."""
        while not self.ended.wait(INTERVAL):
            with suppress(psutil.Error):  # of a process that ends meanwhile
                self._measure()

    def _measure(self) -> None:
        self.machine_peak = max(self.machine_peak, machine_memory() - self.idle)
        for worker in workers():
            family = [worker, *descendants(worker)]
            self.peak = max(self.peak, sum(map(proportional, family)))
            for member in family:
                self.seen.setdefault(member.pid, member.create_time())

    def stop(self) -> None:
        """End the measurements."""
        self.ended.set()
        self.join()

    def survivors(self, seconds: float = 15.0) -> list[int]:
        """The processes that are still alive after some seconds, without the spare worker."""
        until = time.monotonic() + seconds
        while left := [pid for pid in self.seen if self._is_alive(pid)]:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        return left

    def _is_alive(self, pid: int) -> bool:
        try:
            found = psutil.Process(pid)
            same = found.create_time() == self.seen[pid]
            return same and found.status() != psutil.STATUS_ZOMBIE and pid not in spare_family()
        except psutil.Error:
            return False


def machine_memory() -> int:
    """Bytes in use on this machine, without the private pages of processes that are not below this.

    Counts what no mapping shows, too: open files in memory, pipes, sockets, tables of the kernel.
    """
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(fields[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    own = {os.getpid()} | {child.pid for child in psutil.Process().children(recursive=True)}
    return total - free - sum(private_pages(pid) for pid in psutil.pids() if pid not in own)


def private_pages(pid: int) -> int:
    """Bytes of a process that are in no file; 0 where it has ended."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE


def proportional(member: psutil.Process) -> int:
    """Bytes of a process, of each shared page its share; 0 where it is about to end."""
    try:
        return int(member.memory_full_info().pss)
    except psutil.Error:
        return 0


def workers() -> list[psutil.Process]:
    """The worker processes of this process."""
    return [child for child in psutil.Process().children() if child.name() == "bwrap"]


def descendants(worker: psutil.Process) -> list[psutil.Process]:
    """The processes below a worker; none where it has ended."""
    try:
        return worker.children(recursive=True)
    except psutil.Error:
        return []


def spare_family() -> set[int]:
    """Process ids of the worker that was started in advance."""
    spare = process.SPARE_PROCESS.next
    if spare is None:
        return set()
    pid = spare.monitor.process.pid
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.Error:
        return {pid}


def open_descriptors() -> int:
    """The number of open descriptors of this process, without the two of the spare worker."""
    spare = process.SPARE_PROCESS.next is not None
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 2 * spare


def descriptors_above(before: int, seconds: float = 3.0) -> int:
    """Open descriptors beyond those before, once the monitors of workers have closed theirs."""
    until = time.monotonic() + seconds
    while (more := open_descriptors() - before) > 0 and time.monotonic() < until:
        time.sleep(0.05)
    return more


def marked_files(folder: Path) -> list[str]:
    """Files of hostile submissions on this machine, and incomplete ones of an intake."""
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"),
              Path.home(), Path.cwd(), Path("/usr"), Path("/")]  # fmt: skip
    return [*(str(path) for place in places for path in _marked(place)),
            *(str(path) for path in folder.rglob(".incoming-*"))]  # fmt: skip


def _marked(place: Path) -> Iterator[Path]:
    try:
        yield from (path for path in place.iterdir() if path.name.startswith(MARK))
    except OSError:
        return

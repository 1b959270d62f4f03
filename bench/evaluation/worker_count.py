"""How many worker processes a run starts where none are asked for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

CELLS_OF_A_WORKER = 24  # open cells for which one more process pays: it takes seconds to start
WORKER_BYTES = 3 * 2**29  # 1.5 GiB: torch, the plugins, and a batch of small images
CGROUP = Path("/sys/fs/cgroup")
MEMORY_INFO = Path("/proc/meminfo")


class WorkerCount(NamedTuple):
    """A number of worker processes, and why it is that number."""

    workers: int
    reason: str


def default_workers(device: str, open_cells: int) -> WorkerCount:
    """One worker for each CUDA device, or on the CPU as many as cores, memory and cells allow.

    `device`: as in `bench run --device`; `open_cells`: cells that are not evaluated yet.
    """
    devices = torch.cuda.device_count() if device == "auto" else 0
    if devices:
        return WorkerCount(devices, f"one for each of {devices} CUDA devices")
    if device not in ("auto", "cpu"):
        return WorkerCount(1, f"one for {device}")
    cores, memory = usable_cores(), usable_memory()
    room = f"{WORKER_BYTES / 2**30:g} GiB for each of {memory / 2**30:.1f} GiB"
    limits = {
        f"one for each of {cores} cores": cores,
        room: memory // WORKER_BYTES,
        f"{open_cells} open cells, {CELLS_OF_A_WORKER} for each": open_cells // CELLS_OF_A_WORKER,
    }
    reason, count = min(limits.items(), key=lambda item: item[1])
    return WorkerCount(max(1, count), reason)


def usable_cores() -> int:
    """The cores that this process may use: by its affinity, and by the quota of its cgroup."""
    with suppress(AttributeError):  # not on every system
        return max(1, min(len(os.sched_getaffinity(0)), _quota()))
    return os.cpu_count() or 1


def _quota() -> int:
    """The cores of the cgroup's CPU quota, rounded down; as many as there are where it has none."""
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return int(quota) // int(period)
    return os.cpu_count() or 1


def usable_memory() -> int:
    """Bytes of memory that are free, or that the cgroup leaves; 0 where neither is known."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = MEMORY_INFO.read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, limit - used))
    return min(found, default=0)

"""Process ids for leases, by which a process that has ended is recognised."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

_OWNER = re.compile(r"(?P<pid>\d+)@(?P<place>[^#]+)#(?P<start>[^/]+)(/.*)?")


def process_id(label: str = "") -> str:
    """This process as `pid@place#start/label`; a reused pid has another start.

    >>> process_id("gpu0").endswith("/gpu0")
    True
    """
    name = f"{os.getpid()}@{_place()}#{_start(os.getpid()) or 'unknown'}"
    return f"{name}/{label}" if label else name


def is_gone(owner: str) -> bool:
    """Whether the owner is a process of this host that has ended; False where unknown."""
    return _runs(owner) is False


def is_alive(owner: str) -> bool:
    """Whether the owner is a process of this host that runs; False where unknown."""
    return _runs(owner) is True


def _runs(owner: str) -> bool | None:
    """Whether the owner runs; None where it is not a process of this host."""
    parts = _OWNER.fullmatch(owner)
    if parts is None or parts["place"] != _place() or parts["start"] == "unknown":
        return None
    return _start(int(parts["pid"])) == parts["start"]


def _place() -> str:
    """The scope of a pid: host, boot and pid namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    host = socket.gethostname().replace("#", "-")
    if not boot.exists():
        return host
    inside = re.sub(r"\D", "", str(namespace.readlink())) if namespace.is_symlink() else "0"
    return f"{host}.{boot.read_text()[:8]}.{inside}"


def _start(pid: int) -> str | None:
    """The start time of a process as the system reports it; None where no such process runs."""
    if Path("/proc/self/stat").exists():
        return _start_in_proc(pid)
    try:
        found = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return "-".join(re.findall(r"\w+", found.stdout)) or None


def _start_in_proc(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may contain spaces and brackets, so fields are counted after it.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]

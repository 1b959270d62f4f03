"""Who holds a lease: a process named so that a dead one is recognised at once."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

_OWNER = re.compile(r"(?P<pid>\d+)@(?P<place>[^#]+)#(?P<birth>[^/]+)(/.*)?")


def process_id(label: str = "") -> str:
    """This process as `pid@place#birth/label`: a used-up pid with another birth is another owner.

    >>> process_id("gpu0").endswith("/gpu0")
    True
    """
    name = f"{os.getpid()}@{_place()}#{_birth(os.getpid()) or 'unknown'}"
    return f"{name}/{label}" if label else name


def is_gone(owner: str) -> bool:
    """Whether the owner is a process of this host that runs no more; False where unknown."""
    return _runs(owner) is False


def is_alive(owner: str) -> bool:
    """Whether the owner is a process of this host that still runs; False where unknown."""
    return _runs(owner) is True


def _runs(owner: str) -> bool | None:
    """None where this host cannot tell."""
    parts = _OWNER.fullmatch(owner)
    if parts is None or parts["place"] != _place() or parts["birth"] == "unknown":
        return None
    return _birth(int(parts["pid"])) == parts["birth"]


def _place() -> str:
    """Where a pid means one process: the host, this boot of it, this pid namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    host = socket.gethostname().replace("#", "-")
    if not boot.exists():
        return host
    inside = re.sub(r"\D", "", str(namespace.readlink())) if namespace.is_symlink() else "0"
    return f"{host}.{boot.read_text()[:8]}.{inside}"


def _birth(pid: int) -> str | None:
    """When the process started, as its system tells it; None where no such process runs."""
    if Path("/proc/self/stat").exists():
        return _birth_in_proc(pid)
    try:
        told = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return "-".join(re.findall(r"\w+", told.stdout)) or None


def _birth_in_proc(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may hold spaces and brackets: count fields behind its end.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]

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


def is_elsewhere(owner: str) -> bool:
    """Whether the owner is a process of another host, or of this one before its last start.

    >>> is_elsewhere("17@server.1a2b3c4d.4026#99"), is_elsewhere("a download")
    (True, False)
    """
    parts = _OWNER.fullmatch(owner)
    return parts is not None and parts["place"] != _place()


def is_stopped(owner: str) -> bool:
    """Whether the owner is a process of this host that was stopped, as by SIGSTOP or Ctrl-Z."""
    parts = _OWNER.fullmatch(owner)
    if parts is None or _runs(owner) is not True:
        return False
    return _state(int(parts["pid"])) in ("T", "t")


def described(owner: str) -> str:
    """A process as messages name it: its number, where it runs, and whether it was stopped.

    >>> described("17@server.1a2b3c4d.4026#99/gpu0")
    'process 17 on server'
    """
    parts = _OWNER.fullmatch(owner)
    if parts is None:
        return f"the worker {owner!r}"
    if parts["place"] != _place():
        return f"process {parts['pid']} on {parts['place'].split('.')[0]}"
    if is_gone(owner):
        return f"process {parts['pid']}, which has ended"
    return f"process {parts['pid']} on this host{', which is stopped' if is_stopped(owner) else ''}"


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
    state, *rest = _fields_in_proc(pid) or ["X"]
    return None if state in "ZX" else rest[18]


def _state(pid: int) -> str:
    """The state of a process as the system letters it; empty where it is not known."""
    if Path("/proc/self/stat").exists():
        return "".join(_fields_in_proc(pid)[:1])
    found = subprocess.run(
        ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()[:1]


def _fields_in_proc(pid: int) -> list[str]:
    """What the system tells of a process, its state first; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name in brackets may contain spaces and brackets, so fields are counted after it.
    return stat.rpartition(")")[2].split()

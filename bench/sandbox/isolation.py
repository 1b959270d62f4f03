"""The walls: bubblewrap's namespaces around a worker, and what the kernel refuses it. Linux only.

Outside: no network, no file but the program's own, read-only, an empty environment. Inside, before
a stranger's line is read, `enter` gives up every right and sets the limits.
"""

from __future__ import annotations

import ctypes.util
import os
import random
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import bench
import plugins

MIB = 1 << 20
STRANGERS = range(60_100, 64_900)
"""User numbers that no system gives out: where the harness is root, a worker becomes one."""

FORBIDDEN = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "mount", "umount2",
    "pivot_root", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "unshare", "setns", "chroot", "keyctl", "add_key", "request_key", "bpf",
    "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot",
    "swapon", "swapoff", "acct", "quotactl", "name_to_handle_at", "open_by_handle_at", "syslog",
    "settimeofday", "clock_settime", "sethostname", "setdomainname", "iopl", "ioperm",
    "fanotify_init", "lookup_dcookie", "vhangup", "personality",
)  # fmt: skip
"""Calls of the kernel that end in EPERM."""

NEW_SPACES = 0x7E020000  # every CLONE_NEW* flag
ARITHMETIC = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""What of the environment goes along: the same sums come out on both sides of the wall."""


@dataclass(frozen=True)
class Limits:
    """What one worker may use."""

    memory: int = 4096 * MIB
    """Bytes of all its processes together, shared pages counted once."""
    scratch: int = 64 * MIB
    """Bytes in /tmp; also of any one file."""
    output: int = MIB
    """Bytes that it may print."""
    processes: int = 64
    """Processes and threads."""
    files: int = 256
    """Open ones."""
    build: float = 300.0
    """Seconds to declare itself, or to be built."""
    call: float = 60.0
    """Seconds for one answer about one batch; longer where a defense declares many forwards."""


LIMITS = Limits()


@cache
def why_unavailable() -> str:
    """Why no worker can be locked in on this machine; empty where one can."""
    if sys.platform != "linux":
        return "there is a sandbox on Linux only"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed; install it (Debian: apt install bubblewrap)"
    if ctypes.util.find_library("seccomp") is None:
        return "libseccomp is not installed; install it (Debian: apt install libseccomp2)"
    tried = subprocess.run(
        [*bubblewrap_command(), "--ro-bind", "/", "/", "true"],
        env={},
        capture_output=True,
        check=False,
    )
    said = " ".join(tried.stderr.decode(errors="replace").split())[-200:].rstrip(".")
    return f"bubblewrap can put no walls up on this machine ({said})" if tried.returncode else ""


def bubblewrap_command() -> list[str]:
    """What begins every command: namespaces of its own, as root or as a user."""
    return [
        str(shutil.which("bwrap")),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
        *(_as_root() if os.getuid() == 0 else _as_user()),
        *("--die-with-parent", "--new-session"),
    ]


def command(limits: Limits, channel: int, rules: int) -> list[str]:
    """What starts a worker that speaks on the descriptor `channel`.

    `rules` is the descriptor of the kernel's filter, as `forbid` writes it.
    """
    stranger = random.SystemRandom().choice(STRANGERS) if os.getuid() == 0 else 0
    begin = (
        f"import sys; sys.path[:] = {import_path()!r}\n"
        "from bench.sandbox.isolation import Limits\nfrom bench.sandbox.worker import main\n"
        f"main({channel}, {stranger}, {limits!r})"
    )
    return [
        *(*bubblewrap_command(), "--seccomp", str(rules)),
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(limits.scratch), "--perms", "1777", "--tmpfs", "/tmp"),
        *(word for binding in bindings() for word in binding),
        *("--remount-ro", "/", "--chdir", "/tmp", "--clearenv"),
        *(word for pair in environment().items() for word in ("--setenv", *pair)),
        *(sys.executable, "-I", "-B", "-c", begin),
    ]


def _as_root() -> tuple[str, ...]:
    """Root's number of processes has no limit in any namespace: the worker changes its user.

    Its two rights to do so are gone with that change, and bubblewrap's first process, which ends
    the worker with the harness, is another user's then.
    """
    return ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")


def _as_user() -> tuple[str, ...]:
    """The worker is the first process: bubblewrap's would stand beside it without the filter."""
    return ("--unshare-user", "--disable-userns", "--as-pid-1")


def bindings() -> Iterator[tuple[str, ...]]:
    """What a worker finds on its disk, all of it read-only: programs, no data and no home."""
    yield "--ro-bind", "/usr", "/usr"
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if Path(name).is_symlink():
            yield "--symlink", str(Path(name).readlink()), name
        elif Path(name).is_dir():
            yield "--ro-bind", name, name
    places = program()
    # What bubblewrap makes on the way to a place would be open to root alone.
    for folder in sorted({folder for place in places for folder in place.parents} - {Path("/")}):
        yield "--perms", "0755", "--dir", str(folder)
    for place in places:
        yield "--ro-bind", str(place.resolve()), str(place)


def program() -> list[Path]:
    """Where Python, its packages and the project's two lie, none below another."""
    packages = [Path(str(torch.__file__)).parents[1], *map(Path, site.getsitepackages())]
    own = [Path(bench.__file__).parent, Path(str(plugins.__file__)).parent]
    python = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    kept = [Path("/usr")]
    for place in sorted({*python, *packages, *own}):
        if place.is_dir() and not any(place.is_relative_to(whole) for whole in kept):
            kept.append(place)
    return kept[1:]


def import_path() -> list[str]:
    """Where a worker finds modules: as here, as far as that is bound."""
    there = [Path("/usr"), *program()]
    found = [path for path in sys.path if any(Path(path).is_relative_to(p) for p in there)]
    own = [str(Path(package).parents[1]) for package in (bench.__file__, str(plugins.__file__))]
    return list(dict.fromkeys([*found, *own]))


def environment() -> dict[str, str]:
    """All the variables that a worker has."""
    named = {name: os.environ[name] for name in ARITHMETIC if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **named}


def forbid() -> int:
    """A descriptor of the kernel's filter, from its beginning."""
    import pyseccomp as kernel  # looks for its library when it is imported

    rules = kernel.SyscallFilter(kernel.ALLOW)
    for name in FORBIDDEN:
        rules.add_rule(kernel.ERRNO(1), name)
    # Its flags are behind a pointer where no filter looks; whoever hears ENOSYS uses clone.
    rules.add_rule(kernel.ERRNO(38), "clone3")
    for bit in (1 << k for k in range(32) if NEW_SPACES >> k & 1):
        rules.add_rule(kernel.ERRNO(1), "clone", kernel.Arg(0, kernel.MASKED_EQ, bit, bit))
    unix = 1
    rules.add_rule(kernel.ERRNO(1), "socket", kernel.Arg(0, kernel.NE, unix))
    found = os.memfd_create("rules", 0)
    with os.fdopen(os.dup(found), "wb") as file:
        rules.export_bpf(file)
    os.lseek(found, 0, os.SEEK_SET)
    return found


def drop_rights(stranger: int, limits: Limits) -> None:
    """Inside, first of all: give up the user that started this, and set every limit."""
    import resource  # not on every system

    if stranger:
        os.setgroups([])
        os.setresgid(stranger, stranger, stranger)
        os.setresuid(stranger, stranger, stranger)
    for kind, most in (
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_FSIZE, limits.scratch),
        (resource.RLIMIT_DATA, limits.memory),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))

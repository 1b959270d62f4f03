"""Isolation of a worker process with bubblewrap's namespaces and a seccomp filter; Linux only.

The process has no network, an empty environment, and read-only access to Python and this project
alone. Before it reads submitted code, `drop_privileges` gives up its user and sets the limits.
"""

from __future__ import annotations

import ctypes.util
import os
import random
import shutil
import site
import socket
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
WORKER_USERS = range(60_100, 64_900)
"""User ids that no system assigns; where the harness is root, a worker changes to one of them."""

FORBIDDEN_SYSCALLS = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "mount", "umount2",
    "pivot_root", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "unshare", "setns", "chroot", "keyctl", "add_key", "request_key", "bpf",
    "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot",
    "swapon", "swapoff", "acct", "quotactl", "name_to_handle_at", "open_by_handle_at", "syslog",
    "settimeofday", "clock_settime", "sethostname", "setdomainname", "iopl", "ioperm",
    "fanotify_init", "lookup_dcookie", "vhangup", "personality",
)  # fmt: skip
"""System calls that fail with EPERM."""

NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
KEPT_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that a worker inherits, so that sums come out as in the harness."""


@dataclass(frozen=True)
class Limits:
    """Resources that one worker process may use."""

    memory: int = 4096 * MIB
    """Bytes of all its processes together; shared pages are counted once."""
    scratch: int = 64 * MIB
    """Bytes in /tmp, and of any one file."""
    output: int = MIB
    """Bytes of output."""
    processes: int = 64
    """Processes and threads."""
    files: int = 256
    """Open files."""
    build: float = 300.0
    """Seconds for the declarations, and for building a model."""
    call: float = 60.0
    """Seconds for one batch; longer for a defense that declares many forwards."""


LIMITS = Limits()


@cache
def why_unavailable() -> str:
    """Why this machine has no sandbox; empty where it has one."""
    if sys.platform != "linux":
        return "the sandbox needs Linux"
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
    output = " ".join(tried.stderr.decode(errors="replace").split())[-200:].rstrip(".")
    return f"bubblewrap cannot create namespaces here ({output})" if tried.returncode else ""


def bubblewrap_command() -> list[str]:
    """The first words of every command: bubblewrap with new namespaces, as root or as a user."""
    return [
        str(shutil.which("bwrap")),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
        *(_as_root() if os.getuid() == 0 else _as_user()),
        *("--die-with-parent", "--new-session"),
    ]


def command(limits: Limits, channel: int, filter_descriptor: int) -> list[str]:
    """The command that starts a worker process.

    Args:
        limits: resources that it may use.
        channel: descriptor of its end of the socket.
        filter_descriptor: descriptor that `syscall_filter` returns.
    """
    return [
        *(*bubblewrap_command(), "--seccomp", str(filter_descriptor)),
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(limits.scratch), "--perms", "1777", "--tmpfs", "/tmp"),
        *(word for binding in bindings() for word in binding),
        *("--remount-ro", "/", "--chdir", "/tmp", "--clearenv"),
        *(word for pair in environment().items() for word in ("--setenv", *pair)),
        *(sys.executable, "-I", "-B", "-c", _worker_program(limits, channel)),
    ]


def _worker_program(limits: Limits, channel: int) -> str:
    """The Python program of a worker process; under root it names a random unused user."""
    user = random.SystemRandom().choice(WORKER_USERS) if os.getuid() == 0 else 0
    return (
        f"import sys; sys.path[:] = {import_path()!r}\n"
        "from bench.sandbox.isolation import Limits\nfrom bench.sandbox.worker import main\n"
        f"main({channel}, {user}, {limits!r})"
    )


def _as_root() -> tuple[str, ...]:
    """Options under root, whose number of processes has no limit: the worker changes its user.

    It loses its two capabilities for that with the change. Bubblewrap's first process, which ends
    the worker together with the harness, then belongs to another user.
    """
    return ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")


def _as_user() -> tuple[str, ...]:
    """Options under a user: the worker is process 1, since bubblewrap's would have no filter."""
    return ("--unshare-user", "--disable-userns", "--as-pid-1")


def bindings() -> Iterator[tuple[str, ...]]:
    """Options for the read-only file system of a worker: programs, no data, no home folder."""
    yield "--ro-bind", "/usr", "/usr"
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if Path(name).is_symlink():
            yield "--symlink", str(Path(name).readlink()), name
        elif Path(name).is_dir():
            yield "--ro-bind", name, name
    places = program()
    # Folders that bubblewrap creates for a mount point would be accessible to root alone.
    for folder in sorted({folder for place in places for folder in place.parents} - {Path("/")}):
        yield "--perms", "0755", "--dir", str(folder)
    for place in places:
        yield "--ro-bind", str(place.resolve()), str(place)


def program() -> list[Path]:
    """Folders of Python, its packages and the project's two packages, none below another."""
    packages = [Path(str(torch.__file__)).parents[1], *map(Path, site.getsitepackages())]
    own = [Path(bench.__file__).parent, Path(str(plugins.__file__)).parent]
    python = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    kept = [Path("/usr")]
    for place in sorted({*python, *packages, *own}):
        if place.is_dir() and not any(place.is_relative_to(whole) for whole in kept):
            kept.append(place)
    return kept[1:]


def import_path() -> list[str]:
    """Import path of a worker: the harness's, restricted to the folders that it can read."""
    readable = [Path("/usr"), *program()]
    found = [path for path in sys.path if any(Path(path).is_relative_to(p) for p in readable)]
    own = [str(Path(package).parents[1]) for package in (bench.__file__, str(plugins.__file__))]
    return list(dict.fromkeys([*found, *own]))


def environment() -> dict[str, str]:
    """All environment variables of a worker."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **kept}


def syscall_filter() -> int:
    """A descriptor of the compiled seccomp filter, positioned at its beginning."""
    import pyseccomp as kernel  # loads libseccomp when it is imported

    rules = kernel.SyscallFilter(kernel.ALLOW)
    for name in FORBIDDEN_SYSCALLS:
        rules.add_rule(kernel.ERRNO(1), name)
    # A filter cannot read the flags of clone3 behind a pointer; after ENOSYS libc calls clone.
    rules.add_rule(kernel.ERRNO(38), "clone3")
    for bit in (1 << k for k in range(32) if NEW_NAMESPACES >> k & 1):
        rules.add_rule(kernel.ERRNO(1), "clone", kernel.Arg(0, kernel.MASKED_EQ, bit, bit))
    rules.add_rule(kernel.ERRNO(1), "socket", kernel.Arg(0, kernel.NE, int(socket.AF_UNIX)))
    found = os.memfd_create("rules", 0)
    with os.fdopen(os.dup(found), "wb") as file:
        rules.export_bpf(file)
    os.lseek(found, 0, os.SEEK_SET)
    return found


def drop_privileges(user: int, limits: Limits) -> None:
    """Change to another user where `user` is not 0, and set every limit; called in the worker."""
    import resource  # not on every system

    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for kind, most in (
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_FSIZE, limits.scratch),
        (resource.RLIMIT_DATA, limits.memory),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))

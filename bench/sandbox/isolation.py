"""Isolation of a worker process with bubblewrap's namespaces and a seccomp filter; Linux only.

The process has no network, an empty environment, and read-only access to Python and this project
alone. Before it reads submitted code, `drop_privileges` gives up its user and sets the limits.
"""

from __future__ import annotations

import ctypes.util
import itertools
import os
import random
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import bench
import plugins
from bench.core.folders import cache_folder, submissions_folder
from bench.data.datasets import data_folder

MIB = 1 << 20
WORKER_USERS = range(60_100, 64_900)
"""User ids that no system assigns; where the harness is root, a worker changes to one of them."""

SHUFFLED_USERS = itertools.cycle(random.SystemRandom().sample(WORKER_USERS, len(WORKER_USERS)))
PACKAGES_OF_PYTHON = (
    "lib/python3*/*-packages", "lib64/python3*/*-packages", "local/lib/python3*/*-packages",
)  # fmt: skip
LABELLED_DATA = ("sklearn/datasets/data", "sklearn/datasets/tests")
"""Folders of Python packages with data sets; the digits of scikit-learn are one of ours."""
DEVICES = {"null": "null", "zero": "full", "full": "full", "random": "random", "urandom": "urandom"}
"""Device in a worker -> the device of this machine that it is: /dev/full reads as zeros, but cannot
be mapped as memory that the limit does not count."""
STANDARD_FILES = {"fd": "", "stdin": 0, "stdout": 1, "stderr": 2}
KEPT_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that a worker inherits, so that sums come out as in the harness."""


@dataclass(frozen=True)
class Limits:
    """Resources that one worker process may use."""

    memory: int = 4096 * MIB
    """Bytes of all its processes together, with page tables; shared pages are counted once."""
    scratch: int = 64 * MIB
    """Bytes in /tmp, which count as memory too, and of any one file."""
    scratch_files: int = 10_000
    """Files and folders in /tmp."""
    output: int = MIB
    """Bytes of output."""
    processes: int = 64
    """Processes and threads."""
    files: int = 256
    """Open files."""
    build: float = 300.0
    """Seconds for the declarations, and for building a model."""
    call: float = 60.0
    """Seconds for one batch."""
    longest_call: float = 600.0
    """Seconds for one batch of a defense, however many forwards it declares."""
    cell: float = 86_400.0
    """Seconds for a cell in which a worker takes part, the time of the harness included; and for
    each certifier and diagnostic."""


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
        filter_descriptor: descriptor that `system_calls.syscall_filter` returns.
    """
    return [
        *(*bubblewrap_command(), "--seccomp", str(filter_descriptor)),
        *("--proc", "/proc", *devices()),
        *("--size", str(limits.scratch), "--perms", "1777", "--tmpfs", "/tmp"),
        *(word for binding in bindings() for word in binding),
        *("--remount-ro", "/", "--chdir", "/tmp", "--clearenv"),
        *(word for pair in environment().items() for word in ("--setenv", *pair)),
        *(sys.executable, "-I", "-B", "-c", _worker_program(limits, channel)),
    ]


def _worker_program(limits: Limits, channel: int) -> str:
    """The Python program of a worker process; under root it names a random unused user."""
    user = unused_user() if os.getuid() == 0 else 0
    return (
        f"import sys; sys.path[:] = {import_path()!r}\n"
        "from bench.sandbox.isolation import Limits\nfrom bench.sandbox.worker import main\n"
        f"main({channel}, {user}, {limits!r})"
    )


def unused_user() -> int:
    """A user id that no process of this machine has, and no worker of this process had before."""
    owners = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            owners.add(folder.stat().st_uid)
    return next(user for user in SHUFFLED_USERS if user not in owners)


def _as_root() -> tuple[str, ...]:
    """Options under root, whose number of processes has no limit: the worker changes its user.

    It loses its two capabilities for that with the change. Bubblewrap's first process, which ends
    the worker together with the harness, then belongs to another user.
    """
    return ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")


def _as_user() -> tuple[str, ...]:
    """Options under a user: the worker is process 1, since bubblewrap's would have no filter."""
    return ("--unshare-user", "--disable-userns", "--as-pid-1")


def devices() -> Iterator[str]:
    """Options for /dev: no terminals, and no device that two processes could map."""
    yield from ("--tmpfs", "/dev")
    for name, shown in DEVICES.items():
        yield from ("--dev-bind", f"/dev/{shown}", f"/dev/{name}")
    for name, number in STANDARD_FILES.items():
        yield from ("--symlink", f"/proc/self/fd/{number}".rstrip("/"), f"/dev/{name}")
    yield from ("--dir", "/dev/shm", "--remount-ro", "/dev")


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
    for folder in hidden():
        yield "--tmpfs", str(folder)
        for place in sorted(folders()):  # what is below it and needed is shown again
            if place.is_relative_to(folder) and place != folder:
                yield "--ro-bind", str(place.resolve()), str(place)
        yield "--remount-ro", str(folder)


def folders() -> set[Path]:
    """Folders of Python, its packages and the project's two packages."""
    packages = [Path(str(torch.__file__)).parents[1], *map(Path, site.getsitepackages())]
    own = [Path(bench.__file__).parent, Path(str(plugins.__file__)).parent]
    python = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    return {folder for folder in (*python, *packages, *own) if folder.is_dir()}


def program() -> list[Path]:
    """The folders of a worker outside /usr, none below another."""
    kept = [Path("/usr")]
    for place in sorted(folders()):
        if not any(place.is_relative_to(whole) for whole in kept):
            kept.append(place)
    return kept[1:]


def hidden() -> list[Path]:
    """Folders below those of a worker that are empty there: data, results, other submissions."""
    places = [Path("/usr"), *program()]
    project = Path(bench.__file__).parents[1]
    secret = [data_folder(), cache_folder(), submissions_folder(), project]
    secret += map(Path, filter(None, [os.environ.get("BENCH_IMAGE_FOLDER")]))
    found: dict[tuple[Path, Path], Path] = {}  # by place and real path: lib64 may be a link to lib
    for place in places:
        real = place.resolve()
        inside = [place / f.resolve().relative_to(real) for f in secret if _is_below(f, real)]
        for pattern, name in itertools.product(PACKAGES_OF_PYTHON, LABELLED_DATA):
            inside += place.glob(f"{pattern}/{name}")
        inside += [f / name for f in folders() for name in LABELLED_DATA if f.is_relative_to(place)]
        found |= {(place, folder.resolve()): folder for folder in inside}
    return sorted(folder for folder in {*found.values()} - folders() if folder.is_dir())


def _is_below(folder: Path, place: Path) -> bool:
    return folder.resolve() != place and folder.resolve().is_relative_to(place)


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
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (most, most))

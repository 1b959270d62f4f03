"""Isolation: a submission that tries every way out of its process finds none.

Covers bench.sandbox.system_calls too.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sklearn

import bench
import plugins
from bench.registry.registry import Registry
from bench.sandbox import isolation, system_calls
from bench.sandbox.process import SandboxProcess
from bench.sandbox.usage import family
from tests.sandbox.isolated import PLAIN, no_process_left, sandboxed, write_submission

PACKAGE = Path(bench.__file__).parent
DIGITS = Path(str(sklearn.__file__)).parent / "datasets" / "data" / "digits.csv.gz"
SECRET = "text that no worker may read"
TRIALS = {
    "tcp": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "ipv6": "socket.socket(socket.AF_INET6)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "names": "socket.getaddrinfo('localhost.invalid', 80)",
    "abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT)",
    "interfaces": "[name for _, name in socket.if_nameindex() if name != 'lo'] or none()",
    "passwords": "open('/etc/shadow').read()",
    "host name": "open('/etc/hostname').read()",
    "database": "open(DATABASE, 'rb').read()",
    "home": "open(HOME_FILE).read()",
    "other submissions": "os.listdir(SUBMISSIONS)",
    "project": "[name for name in os.listdir(PROJECT) if name not in ('bench', 'plugins', '.venv')]"
    " or none()",
    "data": "os.listdir(DATA)",
    "digits of scikit-learn": "open(DIGITS).read()",
    "data sets of packages": "glob.glob(os.path.join(os.path.dirname(os.path.dirname("
    "torch.__file__)), 'sklearn/datasets/[dt]*a/*')) or none()",
    "write into hidden data": "open(DIGITS, 'w')",
    "environment": "SECRET in str(os.environ) and found() or none()",
    "environments": "any(SECRET in text(p) for p in glob.glob('/proc/[0-9]*/environ'))"
    " and found() or none()",
    "command lines": "len(others()) > 1 and found() or none()",
    "the filter's file": "[p for p in glob.glob('/proc/self/fd/*')"
    " if os.path.islink(p) and 'memfd:rules' in os.readlink(p)] or none()",
    "write into /usr": "open('/usr/x', 'w')",
    "write into /": "open('/x', 'w')",
    "write into /dev": "open('/dev/x', 'w')",
    "write into shared memory": "open('/dev/shm/x', 'w')",
    "write into bench": "open(os.path.join(BENCH, 'x.py'), 'w')",
    "write into packages": "open(os.path.join(os.path.dirname(torch.__file__), 'x.py'), 'w')",
    "write to disks": "open('/dev/vda', 'wb')",
    "kernel settings": "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')",
    "system request": "open('/proc/sysrq-trigger', 'w').write('b')",
    "memory of others": "[open(f'/proc/{p}/mem', 'r+b') for p in others()] or none()",
    "become root": "os.setuid(0)",
    "change root": "os.chroot('/tmp')",
    "more processes": "resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6))",
    "more memory": "resource.setrlimit(resource.RLIMIT_DATA, (2**50, 2**50))",
    "kill process 1": "os.kill(1, 9) or (time.sleep(0.2), none())",
    "new user namespace": "kernel(libc.unshare(0x10000000))",
    "mount": "kernel(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))",
    "trace": "kernel(libc.ptrace(16, 1, 0, 0))",
    "device nodes": "os.mknod('/tmp/node', 0o666 | stat.S_IFBLK, os.makedev(8, 0))",
    "setuid files": "readable('/usr/bin/su') and subprocess.run(['/usr/bin/su', '-c', 'id'],"
    " check=True, capture_output=True, timeout=5)",
    "ownership": "os.chown('/tmp', 0, 0)",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "memory file": "os.memfd_create('x')",
    "shared memory": "mmap.mmap(-1, 4096)",
    "shared memory of a device": "mmap.mmap(os.open('/dev/zero', os.O_RDWR), 4096)",
    "shared memory with checked flags": "kernel(libc.mmap(None, 4096, 3, 0x23, -1, 0))",
    "huge pages": "kernel(libc.mmap(None, 2**21, 3, 0x40022, -1, 0))",
    "System V shared memory": "kernel(libc.shmget(0, 2**20, 0o1600))",
    "System V messages": "kernel(libc.msgget(0, 0o1600))",
    "System V semaphores": "kernel(libc.semget(0, 1, 0o1600))",
    "message queue": "kernel(libc.mq_open(b'/x', 0o102, 0o600, None))",
    "pair of sockets": "socket.socketpair()",
    "local socket": "socket.socket(socket.AF_UNIX)",
    "splice": "kernel(libc.splice(os.open('/dev/zero', 0), None, os.pipe()[1], None, 4096, 0))",
    "tee": "kernel(libc.tee(os.pipe()[0], os.pipe()[1], 4096, 2))",
    "pages in a pipe": "kernel(libc.vmsplice(os.pipe()[1], ctypes.byref(VECTOR), 1, 0))",
    "larger pipes": "fcntl.fcntl(os.pipe()[1], 1031, 2**20)",
    "event polls": "select.epoll()",
    "terminals": "os.openpty()",
    "event loop": "asyncio.run(asyncio.sleep(0))",
    "queue of processes": "multiprocessing.Queue()",
    "workers that load data": "next(iter(DataLoader([1], num_workers=1)))",
    "file lock": "fcntl.flock(os.open(torch.__file__, 0), fcntl.LOCK_EX)",
    "record lock": "fcntl.lockf(os.open(torch.__file__, 0), fcntl.LOCK_SH)",
    "question for a lock": "fcntl.fcntl(os.open(torch.__file__, 0), fcntl.F_GETLK, bytes(32))",
    "lock of an open file": "fcntl.fcntl(os.open(torch.__file__, 0), 37, bytes(32))",
    "lease": "fcntl.fcntl(os.open(torch.__file__, 0), fcntl.F_GETLEASE)",
    "notices of a folder": "fcntl.fcntl(os.open('/usr', 0), fcntl.F_NOTIFY, 1)",
    "notices of files": "kernel(libc.inotify_init1(0))",
    "pages in memory": "kernel(libc.mincore(MAPPED, 4096, ctypes.create_string_buffer(9)))",
    "dropping pages": "os.posix_fadvise(os.open(torch.__file__, 0), 0, 0, os.POSIX_FADV_DONTNEED)",
    "reading without waiting": "os.preadv(os.open(torch.__file__, 0), [bytearray(9)], 0, 8)",
}  # fmt: skip
if platform.machine() == "x86_64":  # elsewhere these calls have other numbers
    TRIALS |= {
        "new user namespace by clone": "kernel(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0))",
        "clone3": "kernel(libc.syscall(435, 0, 0))",
        "read another's memory": "kernel(libc.syscall(310, 1, 0, 0, 0, 0, 0))",
        "io_uring": "kernel(libc.syscall(425, 1, 0))",
        "keys": "kernel(libc.syscall(250, 0, -3, 0, 0, 0))",
        "bpf": "kernel(libc.syscall(321, 0, 0, 0))",
        "perf": "kernel(libc.syscall(298, 0, 0, -1, -1, 0))",
        "page faults": "kernel(libc.syscall(323, 0))",
        "secret memory": "kernel(libc.syscall(447, 0))",
        "state of the page cache": "kernel(libc.syscall(451, 0, 0, 0, 0))",
        "calls of later systems": "kernel(libc.syscall(463, 0, 0, 0, 0))",
        "asynchronous input": "kernel(libc.syscall(206, 8, ctypes.byref(ctypes.c_ulong())))",
    }

WORKING = {
    "a thread": "found() if [t.start() or t.join() for t in [Thread(target=found)]] else none()",
    "a program": "subprocess.run(['/bin/sh', '-c', 'echo found'], check=True).returncode",
}  # fmt: skip
"""What the same submission can do all the same."""
FCNTL_COMMANDS = {name: value for name, value in vars(fcntl).items() if name.startswith("F_")} | {
    "F_OFD_GETLK": 36, "F_OFD_SETLK": 37, "F_OFD_SETLKW": 38,
}  # fmt: skip
"""By the names of fcntl(2); older versions of Python lack some."""

PROGRAM = """
import asyncio, ctypes, fcntl, glob, json, mmap, multiprocessing, os, resource, select, socket
import stat, subprocess, time
from threading import Thread

import torch
from torch.utils.data import DataLoader

libc = ctypes.CDLL(None, use_errno=True)
VECTOR = (ctypes.c_void_p * 2)(ctypes.cast(ctypes.create_string_buffer(9), ctypes.c_void_p), 9)
MAPPED = ctypes.c_void_p(id(0) & ~4095)


def kernel(answer):
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def readable(path):
    try:
        return os.access(path, os.R_OK)
    except OSError:
        return False


def text(path):
    try:
        return open(path, errors="replace").read()
    except OSError:
        return ""


def others():
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]


def none():
    raise LookupError("nothing found")


def found():
    return "found"


ASSIGNMENTS
results = {}
for name, trial in TRIALS.items():
    try:
        results[name] = ["open", repr(eval(trial))[:40]]
    except Exception as error:
        results[name] = ["blocked", f"{type(error).__name__}: {error}"[:60]]
RESULTS = json.dumps(results)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """The result of each trial, which the submission declares as the name of a data set."""
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    folder = tmp_path_factory.mktemp("sandbox")
    database, home = folder / "bench.db", Path.home() / f".gauntlet-test-{os.getpid()}"
    sqlite3.connect(database).close()
    database.write_text(SECRET)
    home.write_text(SECRET)
    abstract = f"gauntlet-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{abstract}")
        unix.listen()
        constants = {
            "PORT": server.getsockname()[1], "ABSTRACT": abstract, "DATABASE": str(database),
            "HOME_FILE": str(home), "DIGITS": str(DIGITS),
            "SUBMISSIONS": str(folder), "SECRET": SECRET,
            "PROJECT": str(PACKAGE.parent), "BENCH": str(PACKAGE),
            "DATA": os.environ.get("BENCH_DATA", "/nowhere"), "TRIALS": TRIALS | WORKING,
        }  # fmt: skip
        assignments = "\n".join(f"{name} = {value!r}" for name, value in constants.items())
        source = PLAIN.replace("from bench.plugin", PROGRAM.replace("ASSIGNMENTS", assignments)
                               + "\nfrom bench.plugin", 1)  # fmt: skip
        source = source.replace("build=build)", "build=build, datasets=('digits', RESULTS))")
        write_submission(folder, source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GAUNTLET_SECRET", SECRET)
            registry = sandboxed(folder)
    home.unlink()
    assert registry.reasons_not_imported == {}
    yield json.loads(registry.find("defense", "mine").value.datasets[1])
    assert no_process_left()


@pytest.mark.parametrize("trial", TRIALS)
def test_every_way_out_is_blocked(trial: str, results: dict[str, list[str]]) -> None:
    state, result = results[trial]
    assert state == "blocked", f"{trial}: {result}"


@pytest.mark.parametrize("trial", WORKING)
def test_what_a_computation_needs_works(trial: str, results: dict[str, list[str]]) -> None:
    state, result = results[trial]
    assert state == "open", f"{trial}: {result}"


@pytest.mark.parametrize(
    "trial",
    ["tcp", "new user namespace", "mount", "trace", "memory file", "shared memory", "huge pages",
     "System V shared memory", "pages in a pipe", "pair of sockets", "file lock",
     "pages in memory"],
)  # fmt: skip
def test_the_kernel_refuses_these_calls(trial: str, results: dict[str, list[str]]) -> None:
    assert results[trial][1].startswith("PermissionError: [Errno 1]")


def test_the_documentation_lists_the_calls_that_fail() -> None:
    page = (PACKAGE.parent / "docs" / "howto" / "sandbox.md").read_text()
    section = page.partition("## System calls that fail\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][1:]
    listed = [re.findall(r"`(\w+)`", row) for row in rows]
    known = [system_calls.ESCAPES, system_calls.UNCOUNTED_MEMORY, system_calls.CHANNELS_TO_OTHERS]
    assert listed[1].pop() == "memfd_secret"
    assert [tuple(calls) for calls in listed] == known
    assert {call for group in known for call in group} == {
        call for call in system_calls.FORBIDDEN_SYSCALLS if isinstance(call, str)
    }
    commands = tuple(FCNTL_COMMANDS[name] for name in re.findall(r"`(F_\w+)`", section))
    assert commands == system_calls.FILE_COMMANDS
    newer = system_calls.NEWER_CALLS
    assert f"numbers from {newer.start} to {newer.stop - 1} end with" in " ".join(section.split())


def test_the_same_trials_succeed_outside_the_sandbox(tmp_path: Path) -> None:
    # Otherwise the tests above would pass because there was nothing to find.
    names = ["project", "environment", "environments", "command lines"]
    constants = {
        "PROJECT": str(PACKAGE.parent), "SECRET": SECRET,
        "TRIALS": {name: TRIALS[name] for name in names},
    }  # fmt: skip
    assignments = "\n".join(f"{name} = {value!r}" for name, value in constants.items())
    program = PROGRAM.replace("ASSIGNMENTS", assignments) + "print(RESULTS)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "GAUNTLET_SECRET": SECRET},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert {name: state for name, (state, _) in found.items()} == dict.fromkeys(names, "open")


def test_a_worker_can_read_programs_only() -> None:
    folders = {words[1] for words in isolation.bindings() if words[0] == "--ro-bind"}
    assert str(PACKAGE) in folders
    closed = {"/", "/etc", "/home", "/root", "/var", str(PACKAGE.parent), str(Path.home())}
    assert not folders & closed
    for folder in map(Path, folders):
        assert not (folder / "bench.db").exists()


def _list(*folders: Path) -> list[str]:
    """What a process in the file system of a worker finds in folders."""
    words = [word for binding in isolation.bindings() for word in binding]
    words = [*isolation.bubblewrap_command(), *words, "--remount-ro", "/"]
    done = subprocess.run(
        [*words, "/bin/ls", *map(str, folders)],
        env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize("variable", ["BENCH_DATA", "BENCH_IMAGE_FOLDER", "BENCH_SUBMISSIONS"])
@pytest.mark.usefixtures("sandbox")
def test_data_below_the_folders_of_python_is_hidden(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels").touch()
    (tmp_path / "program").touch()
    places = [*isolation.program(), tmp_path]
    monkeypatch.setattr(isolation, "program", lambda: places)
    assert _list(tmp_path / "data", tmp_path) == [f"{tmp_path}:", "data", "program",
                                                  f"{tmp_path}/data:", "labels"]  # fmt: skip
    monkeypatch.setenv(variable, str(tmp_path / "data"))
    assert _list(tmp_path / "data", tmp_path) == [f"{tmp_path}:", "data", "program",
                                                  f"{tmp_path}/data:"]  # fmt: skip


@pytest.mark.usefixtures("sandbox")
def test_a_project_below_usr_shows_its_two_packages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "app"
    for name in ("bench", "plugins", "submissions"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").touch()
    (project / "bench.db").write_text(SECRET)
    places = [*isolation.program(), tmp_path]
    monkeypatch.setattr(isolation, "program", lambda: places)
    monkeypatch.setattr(bench, "__file__", str(project / "bench" / "__init__.py"))
    monkeypatch.setattr(plugins, "__file__", str(project / "plugins" / "__init__.py"))
    assert _list(project) == ["bench", "plugins"]
    assert _list(project / "bench") == ["__init__.py"]


def test_no_two_workers_have_one_user() -> None:
    users = [isolation.unused_user() for _ in range(200)]
    assert len(set(users)) == 200
    assert not set(users) & {process.uids().real for process in psutil.process_iter()}


@pytest.mark.usefixtures("sandbox")
def test_two_workers_share_no_namespace_no_scratch_and_no_user() -> None:
    workers = [SandboxProcess(), SandboxProcess()]
    try:
        for worker in workers:
            worker.start()
        inner = [Path(f"/proc/{family(w.monitor.process.pid)[-1]}") for w in workers]
        for kind in ("pid", "ipc", "net", "mnt", "uts", "cgroup"):
            assert (
                len({*(p.joinpath("ns", kind).readlink() for p in [*inner, Path("/proc/self")])})
                == 3
            )
        assert len({p.joinpath("root/tmp").stat().st_dev for p in inner}) == 2
        if os.getuid() == 0:
            assert len({p.stat().st_uid for p in inner}) == 2
    finally:
        for worker in workers:
            worker.close()


def test_without_a_sandbox_the_code_of_a_submission_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_submission(tmp_path, "raise SystemExit('this ran')")
    why = "bubblewrap is not installed; install it"
    monkeypatch.setattr(isolation, "why_unavailable", lambda: why)
    registry = sandboxed(tmp_path)
    assert registry.not_imported() == ["mine"]
    assert registry.why_not_imported("mine") == f"{why}, or run its code with --allow-unsandboxed"
    assert "mine" not in Registry.load(tmp_path).defenses


def test_the_sandbox_is_started_to_find_out_whether_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    isolation.why_unavailable.cache_clear()
    monkeypatch.setattr(
        isolation, "bubblewrap_command", lambda: ["bwrap", "--unshare-pid", "--cap-add", "CAP_NONE"]
    )
    assert (
        "bubblewrap cannot create namespaces here (bwrap: unknown cap"
        in isolation.why_unavailable()
    )
    isolation.why_unavailable.cache_clear()
    monkeypatch.undo()
    assert isolation.why_unavailable() == ""

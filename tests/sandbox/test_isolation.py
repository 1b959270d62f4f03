"""Isolation: a submission that tries every way out of its process finds none."""

from __future__ import annotations

import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench
from bench.registry.registry import Registry
from bench.sandbox import isolation
from tests.sandbox.isolated import PLAIN, no_process_left, sandboxed, write_submission

PACKAGE = Path(bench.__file__).parent
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
    }

PROGRAM = """
import ctypes, glob, json, os, resource, socket, stat, subprocess, time
import torch

libc = ctypes.CDLL(None, use_errno=True)


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
            "HOME_FILE": str(home), "SUBMISSIONS": str(folder), "SECRET": SECRET,
            "PROJECT": str(PACKAGE.parent), "BENCH": str(PACKAGE),
            "DATA": os.environ.get("BENCH_DATA", "/nowhere"), "TRIALS": TRIALS,
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


@pytest.mark.parametrize("trial", ["tcp", "new user namespace", "mount", "trace"])
def test_the_kernel_refuses_these_calls(trial: str, results: dict[str, list[str]]) -> None:
    assert results[trial][1].startswith("PermissionError: [Errno 1]")


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

"""Memory and CPU time of other processes are measured as the kernel counts them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.sandbox.usage import CpuMeter, Scratch, family, memory_of, scratch_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1 << 20
PRELUDE = "import mmap, os, signal, sys, time\n"
PRIVATE = "mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot={prot})"
REPORT = "\nprint(flush=True)\nsys.stdin.read()"


@contextmanager
def running(code: str) -> Iterator[int]:
    """A Python process that has run this code and waits."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PRELUDE + code + REPORT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_the_family_of_a_process_has_children_of_threads_and_of_children() -> None:
    code = (
        "import threading\n"
        "def fork():\n    if os.fork() == 0: time.sleep(60)\n    time.sleep(60)\n"
        "threading.Thread(target=fork, daemon=True).start()\n"
        "if os.fork() == 0:\n    if os.fork() == 0: time.sleep(60)\n    time.sleep(60)\n"
        "time.sleep(0.5)"
    )
    with running(code) as pid:
        found = family(pid)
        assert found[0] == pid
        assert len(found) == 4
    assert family(pid) == [pid]


def test_shared_pages_are_counted_once_beyond_the_limit() -> None:
    code = (
        f"kept = b'x' * {64 * MIB}\nfor _ in range(3):\n    if os.fork() == 0: time.sleep(60)\n"
        "time.sleep(0.5)"
    )
    with running(code) as pid:
        assert 64 * MIB < memory_of(pid) < 128 * MIB
        assert memory_of(pid, 10**12) > 192 * MIB


@pytest.mark.parametrize("limit", [0, 10**12])
def test_page_tables_are_memory(limit: int) -> None:
    kept = PRIVATE.format(size=2**36, prot="mmap.PROT_READ")
    code = (
        f"kept = {kept}\nkept.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "for place in range(0, 2**36, 2**21): kept[place]"
    )
    with running(code) as pid:
        assert 128 * MIB < memory_of(pid, limit) < 200 * MIB


@pytest.mark.parametrize("limit", [0, 10**12])
def test_memory_that_was_made_read_only_stays_memory(limit: int) -> None:
    code = (
        f"kept = {PRIVATE.format(size=96 * MIB, prot=3)}\nkept.write(bytes({96 * MIB}))\n"
        "import ctypes\nat = ctypes.addressof(ctypes.c_char.from_buffer(kept))\n"
        f"assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), {96 * MIB}, 1) == 0"
    )
    with running(code) as pid:
        assert 96 * MIB < memory_of(pid, limit) < 200 * MIB


def test_a_process_that_hides_its_mappings_is_counted() -> None:
    code = f"import ctypes\nctypes.CDLL(None).prctl(4, 0)\nkept = b'x' * {64 * MIB}"
    with running(code) as pid:
        assert 64 * MIB < memory_of(pid) < 128 * MIB


def test_an_ended_process_has_no_memory_and_no_files() -> None:
    with running("") as pid:
        pass
    assert memory_of(pid) == 0
    assert scratch_of(pid, 64 * MIB) == Scratch(0, 0)


BURN = "until = time.process_time() + 0.5\nwhile time.process_time() < until: pass\n"
CHILD = f"if os.fork() == 0:\n    exec({BURN!r})\n    os._exit(0)\n"
BURNING = {
    "itself": BURN,
    "a thread": "import threading\ndef burn():\n    until = time.thread_time() + 0.5\n"
    "    while time.thread_time() < until: pass\n"
    "t = threading.Thread(target=burn); t.start(); t.join()",
    "a child that it waits for": f"{CHILD}os.wait()",
    "a child that it does not wait for": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    f"{CHILD}time.sleep(2)",
}  # fmt: skip


@pytest.mark.parametrize("kind", BURNING)
def test_cpu_time_of_all_processes_is_counted_and_never_decreases(kind: str) -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", PRELUDE + BURNING[kind]]) as process:
        meter, seen = CpuMeter(process.pid), [0.0]
        while process.poll() is None:
            seen.append(meter.seconds())
            time.sleep(0.02)
    seen.append(meter.seconds())
    assert seen == sorted(seen)
    least = 0.2 if "not wait" in kind else 0.45  # its last moments are seen by chance
    assert least < seen[-1] < 0.8

"""Orphans of bubblewrap are ended, and no other process."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bench.sandbox.orphans import end_orphans, orphans
from bench.sandbox.process import SandboxProcess

WORKER = "bench.sandbox.worker"
pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a waiting process of a given name, in a process namespace of its own or not."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(name: str, word: str, *, nested: bool) -> subprocess.Popen[bytes]:
        program = shutil.copy("/usr/bin/tail", tmp_path / name)
        user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
        namespace = ["unshare", *user, "--pid", "--fork", "--kill-child"] if nested else []
        command = [*namespace, str(program), "-f", "/dev/null", word]
        begun.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        process, deadline = psutil.Process(begun[-1].pid), time.monotonic() + 30
        while name not in {p.name() for p in (process, *process.children())}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def test_an_orphan_is_ended(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = started("bwrap", WORKER, nested=True)
    (child,) = psutil.Process(process.pid).children()
    assert child.pid in orphans()
    end_orphans()
    process.wait(timeout=30)
    assert child.pid not in orphans()


@pytest.mark.parametrize(
    ("name", "word", "nested"),
    [("bwrap", WORKER, False), ("bwrap", "another.program", True), ("tail", WORKER, True)],
    ids=["first process", "another program's", "not bubblewrap"],
)
def test_other_processes_are_not_ended(
    started: Callable[..., subprocess.Popen[bytes]], name: str, word: str, nested: bool
) -> None:
    process = started(name, word, nested=nested)
    end_orphans()
    time.sleep(0.2)
    assert process.poll() is None


def test_a_worker_with_its_harness_is_not_ended() -> None:
    worker = SandboxProcess()
    end_orphans()
    worker.start()
    end_orphans()
    assert worker.running
    worker.close()

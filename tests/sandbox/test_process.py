"""Hostile submissions: each one ends in one clear message, and no process is left.

Covers bench.sandbox.monitor and bench.sandbox.worker too.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import psutil
import pytest
import torch

from bench.core.errors import PluginError
from bench.sandbox import isolation
from bench.sandbox.isolation import MIB, Limits
from bench.sandbox.orphans import end_orphans
from bench.sandbox.process import SandboxProcess
from bench.training.defense_builder import DefenseBuilder
from tests.fixtures.known_models import digits
from tests.sandbox.isolated import PLAIN, no_process_left, sandboxed, write_submission

pytestmark = [pytest.mark.usefixtures("sandbox"), pytest.mark.slow]

SMALL_LIMITS = Limits(memory=1024 * MIB, build=8.0, call=4.0)
PATIENT_LIMITS = replace(SMALL_LIMITS, call=25.0)
"""Time to fill a memory on a busy machine."""

IMPORT = {
    "an import that never ends": (
        "while True: pass", "gave no answer within 8 s; its process was ended"
    ),
    "an error": ("1 / 0", r"failed: ZeroDivisionError: division by zero \(plugin.py, line 5\)"),
    "invalid Python": ("def", "failed: SyntaxError"),
    "an exit": ("raise SystemExit(0)", "failed: SystemExit: 0"),
    "an interrupt": ("raise KeyboardInterrupt", "gave no answer: its process"),
    "a silent exit": ("import os; os._exit(0)", "its process exited with status 0"),
    "an unknown library": ("import numppy", "ModuleNotFoundError: No module named 'numppy'"),
    "an error without a message": ("raise EOFError", r"failed: EOFError \(plugin.py"),
    "an error of a megabyte": ("raise ValueError('x' * 10**6)", "failed: ValueError: x+"),
    "an error with control characters": (
        r"raise ValueError('\x1b[31mred\x1b[0m\x07\n\u202eback')", r"ValueError: red +back"
    ),
    "an error with half a character": (
        r"raise ValueError('\udcff.png is no file')", r"failed: ValueError: \\udcff\.png is no file"
    ),
    "an error that cannot be printed": (
        "class Shy(Exception):\n    def __str__(self): raise self\nraise Shy",
        "gave no answer: its process exited",
    ),
}  # fmt: skip
"""Code at the top of a submission -> the expected message."""

FORWARD = {
    "an endless loop": ("while True: pass", "gave no answer within 4 s; its process was ended"),
    "a sleep that ignores signals": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
        "gave no answer within 4 s; its process was ended",
    ),
    "half a character in an error": (
        r"raise Exception('caf\u00e9 \ud83d')",
        r"failed: Exception: caf\u00e9 \\ud83d \(plugin",
    ),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV"),
    "an abort": ("import os; os.abort()", "was killed by (SIGABRT|SIGSEGV)"),
    "killing itself": ("import os; os.kill(os.getpid(), 9); os._exit(9)", "SIGKILL|with status 9"),
    "killing every process": ("import os; os.kill(-1, 9); 1 / 0", "failed|gave no answer"),
    "killing its parent": ("import os; os.kill(os.getppid(), 9); 1 / 0", "failed|gave no"),
    "a fork bomb": (
        "import os\nwhile True: os.fork()", "temporarily unavailable|gave no answer"
    ),
    "a huge tensor": ("torch.ones(2**34)", "failed: .*(allocate|memory)"),
    "memory of many processes": (
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0:\n"
        "        block = bytearray(2**27)\n        time.sleep(60)\ntime.sleep(60)",
        r"used \d+ MiB of memory; the limit is 1024 MiB",
    ),
    "memory of many processes with closed output": (
        "import os, time\nos.close(1)\nos.close(2)\nfor _ in range(12):\n"
        "    if os.fork() == 0:\n        block = bytearray(2**27)\n        time.sleep(60)\n"
        "time.sleep(60)",
        r"used \d+ MiB of memory; the limit is 1024 MiB",
    ),
    "a leak": (
        "kept = []\nwhile True: kept.append(torch.rand(2**20))",
        r"used \d+ MiB of memory; the limit|failed: .*(allocate|memory)",
    ),
    "memory that is written, then read-only": (
        "import ctypes, mmap, time\nkept = []\nwhile True:\n"
        "    kept.append(mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))\n"
        "    kept[-1].write(bytes(2**25))\n"
        "    at = ctypes.addressof(ctypes.c_char.from_buffer(kept[-1]))\n"
        "    ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), 2**25, 1)",
        r"used \d+ MiB of memory; the limit is 1024 MiB",
    ),
    "memory of page tables": (
        "import mmap, time\nkept = []\nwhile True:\n    kept.append(mmap.mmap("
        "-1, 2**36, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ))\n"
        "    kept[-1].madvise(mmap.MADV_NOHUGEPAGE)\n"
        "    for place in range(0, 2**36, 2**21): kept[-1][place]",
        r"used \d+ MiB of memory; the limit is 1024 MiB",
    ),
    "many files": (
        "for k in range(10**6): open(f'/tmp/{k}', 'w').close()\nimport time; time.sleep(60)",
        "made more than 10000 files in /tmp",
    ),
    "many folders": (
        "import os\nfor k in range(10**6): os.mkdir(f'/tmp/{k}')\nimport time; time.sleep(60)",
        "made more than 10000 files in /tmp",
    ),
    "many links": (
        "import os\nfor k in range(10**6): os.symlink('x', f'/tmp/{k}')\n"
        "import time; time.sleep(60)",
        "made more than 10000 files in /tmp",
    ),
    "much text output": ("while True: print('x' * 1000)", "printed more than 1 MiB"),
    "much binary output": (
        "import os\nwhile True: os.write(2, bytes([255, 27]) * 1000)", "printed more than 1 MiB"
    ),
    "a full disk": (
        "for k in range(100): open(f'/tmp/{k}', 'wb').write(bytes(2**20))", "No space left"
    ),
    "one large file": ("open('/tmp/x', 'wb').truncate(2**30)", "File too large"),
    "many open files": ("kept = [open('/dev/null') for _ in range(1000)]", "Too many open files"),
    "many threads": (
        "import threading, time\n"
        "for _ in range(1000): threading.Thread(target=time.sleep, args=(60,)).start()",
        "can't start new thread",
    ),
    "bottomless recursion": ("f = lambda: f()\nf()", "RecursionError"),
    "None": ("return None", "None; a tensor of logits"),
    "a list": ("return [0.0]", "list; a tensor of logits"),
    "a wrong shape": ("return torch.zeros(len(images))", r"torch.float32 \[8\] for 8 images"),
    "one row too few": ("return torch.zeros(len(images) - 1, 10)", r"\[7, 10\] for 8 images"),
    "integers": ("return torch.zeros(len(images), 10).long()", "torch.int64"),
    "complex numbers": ("return torch.zeros(len(images), 10) * 1j", "complex64"),
    "sparse logits": ("return torch.zeros(len(images), 10).to_sparse()", "failed: "),
    "a million classes": ("return torch.zeros(len(images), 10**6)", "bytes was announced"),
    "random bytes on the channel": (
        "channel_socket().sendall(b'x' * 100)\nreturn logits(images)", "are no frame"
    ),
    "a frame of a petabyte": (
        "channel_socket().sendall(PREFIX.pack(MAGIC, 2, 2, 2**50))\nreturn logits(images)",
        "bytes was announced",
    ),
    "half a reply": (
        "channel_socket().sendall(PREFIX.pack(MAGIC, 2, 2, 0))\nimport time; time.sleep(60)",
        "gave no answer within 4 s",
    ),
    "a reply to another request": (
        "channel_socket().sendall(PREFIX.pack(MAGIC, 9, 2, 0) + b'{}')",
        "a reply to request 9 was received instead of 2",
    ),
    "a reply without a tensor": (
        "channel_socket().sendall(PREFIX.pack(MAGIC, 2, 2, 0) + b'{}')",
        "tensors were sent without their descriptions",
    ),
    "a request before the reply": (
        "channel_socket().sendall(PREFIX.pack(MAGIC, 2, 22, 0) + b'{\"request\": \"trained\"}')",
        "tensors were sent without their descriptions",
    ),
    "a closed channel": ("channel_socket().close()\nreturn logits(images)", "gave no answer: "),
}  # fmt: skip
"""Code in `forward` -> the expected message."""

BACKWARD = {
    "an endless backward pass": ("while True: pass", "gave no answer within 4 s"),
    "a backward pass that raises": (
        "raise ValueError('wrong sign')",
        "failed: ValueError: wrong sign",
    ),
    "a backward pass that crashes": ("import os; os.abort()", "was killed by (SIGABRT|SIGSEGV)"),
}
"""Code in the backward pass -> the expected message."""

PREAMBLE = """
import gc, socket
from bench.sandbox.protocol import MAGIC, PREFIX


def channel_socket():
    return next(o for o in gc.get_objects() if isinstance(o, socket.socket))


def logits(images):
    return images.flatten(1)[:, :10] * 1


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
BACKWARD
        return gradient
"""


def hostile(forward: str = "pass", backward: str = "pass") -> str:
    """PLAIN, with this code in its forward and backward pass."""
    preamble = PREAMBLE.replace("BACKWARD", indent(backward, " " * 8))
    body = indent(f"{forward}\nimages = Identity.apply(images)", " " * 8).lstrip()
    source = PLAIN.replace("class Net", f"{preamble}\n\nclass Net", 1)
    return source.replace("return self.layer", f"{body}\n        return self.layer", 1)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits; a spare process that was started with others is not used."""
    monkeypatch.setattr(isolation, "LIMITS", SMALL_LIMITS)


@pytest.mark.parametrize("kind", IMPORT)
def test_code_that_fails_at_import_is_reported(kind: str, tmp_path: Path) -> None:
    code, message = IMPORT[kind]
    write_submission(tmp_path, f'"""A submission."""\n\n\n\n{code}\n{PLAIN}')
    registry = sandboxed(tmp_path)
    assert registry.not_imported() == ["mine"]
    why = registry.why_not_imported("mine")
    assert why.startswith("submission mine ")
    _check_message(why, message)


@pytest.mark.parametrize("kind", FORWARD)
def test_code_that_fails_in_the_forward_pass_is_reported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, message = FORWARD[kind]
    if "the limit is" in message:
        monkeypatch.setattr(isolation, "LIMITS", PATIENT_LIMITS)
    write_submission(tmp_path, hostile(code))
    _check_failure(tmp_path, message)


@pytest.mark.parametrize("kind", BACKWARD)
def test_code_that_fails_in_the_backward_pass_is_reported(kind: str, tmp_path: Path) -> None:
    code, message = BACKWARD[kind]
    write_submission(tmp_path, hostile(backward=code))
    _check_failure(tmp_path, message)


def test_the_template_of_these_submissions_works_without_hostile_code(tmp_path: Path) -> None:
    write_submission(tmp_path, hostile())
    module, leaf = _built(tmp_path), digits(8)[0].requires_grad_()
    module(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.any()


def test_a_reply_that_is_sent_twice_is_detected_at_the_next_request(tmp_path: Path) -> None:
    code = (
        "sent, parts = encode_tensors({'logits': logits(images)})\n"
        "text = __import__('json').dumps({'tensors': sent, 'drew': False}).encode()\n"
        "body = b''.join(map(bytes, parts))\n"
        "channel_socket().sendall(PREFIX.pack(MAGIC, 2, len(text), len(body)) + text + body)"
    )
    write_submission(
        tmp_path,
        hostile(code).replace("import MAGIC, PREFIX", "import MAGIC, PREFIX, encode_tensors"),
    )
    module, x = _built(tmp_path), digits(8)[0]
    module(x)
    with pytest.raises(PluginError, match="a reply to request 2 was received instead of 3"):
        module(x)


def test_child_processes_end_with_the_worker(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)"
    )
    write_submission(tmp_path, hostile(code))
    module = _built(tmp_path)
    module(digits(8)[0])
    del module
    gc.collect()
    assert no_process_left()


ENDLESS_PROGRAM = """
from bench.sandbox.process import SandboxProcess
process = SandboxProcess()
process.start()
print(process.monitor.process.pid, flush=True)
header = {"method": "declare attack", "kind": "attack", "name": "x", "path": "p.py", "threads": 1}
process.call("x", header, b"while True: pass", seconds=60)
"""


def test_a_worker_ends_with_a_killed_harness() -> None:
    program = [sys.executable, "-c", ENDLESS_PROGRAM]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        worker = psutil.Process(int(harness.stdout.readline()))
        time.sleep(0.5)
        family = [worker, *worker.children(recursive=True)]
        harness.kill()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert len(family) > 1


def _start_workers_and_wait() -> None:
    kept = [SandboxProcess() for _ in range(2)]
    time.sleep(60)
    del kept


def _children(known: set[int]) -> list[psutil.Process]:
    """Processes that this process has adopted, but not those with a known id."""
    return [child for child in psutil.Process().children() if child.pid not in known]


def test_no_worker_survives_a_harness_that_is_killed_at_any_moment() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what survives becomes a child of this process
    try:
        for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0):
            before = {child.pid for child in psutil.Process().children()}
            harness = multiprocessing.get_context("fork").Process(target=_start_workers_and_wait)
            harness.start()
            time.sleep(delay)
            harness.kill()
            harness.join()
            deadline = time.monotonic() + 60
            while (left := _children(before)) and time.monotonic() < deadline:
                end_orphans()  # of bubblewrap, where it was killed while it started a worker
                psutil.wait_procs(left, timeout=0.5)
            assert left == [], delay
    finally:
        libc.prctl(36, 0)


def test_patches_of_torch_in_the_worker_have_no_effect_here(tmp_path: Path) -> None:
    code = (
        "torch.argmax = torch.Tensor.argmax = lambda *a, **k: torch.zeros(8).long()\n"
        "torch.equal = lambda a, b: True\ntorch.manual_seed(0)\nimages.zero_()"
    )
    write_submission(tmp_path, hostile(code))
    module, x = _built(tmp_path), digits(8)[0]
    before = x.clone()
    assert torch.equal(module(x), module(x))
    assert torch.equal(x, before)
    assert not torch.equal(x, x + 1)
    assert torch.eye(3).argmax(1).tolist() == [0, 1, 2]


def _built(folder: Path) -> torch.nn.Module:
    registry = sandboxed(folder)
    assert registry.reasons_not_imported == {}
    return DefenseBuilder(registry, "mine", registry.find("dataset", "digits").value).build()


def _check_failure(folder: Path, message: str) -> None:
    """A forward and backward pass raises this message within 30 s and leaves no process."""
    module, leaf = _built(folder), digits(8)[0].requires_grad_()
    since = time.monotonic()
    with pytest.raises(PluginError) as raised:
        module(leaf).sum().backward()
    assert time.monotonic() - since < 30
    _check_message(str(raised.value), message)
    with pytest.raises(PluginError):  # the same in a new process
        module(leaf).sum().backward()
    del module, raised
    gc.collect()
    assert no_process_left()


def _check_message(message: str, expected: str) -> None:
    assert re.search(expected, message), message
    assert message.startswith("submission mine ") or "the defense" in message
    assert message.isprintable()
    assert len(message) < 600

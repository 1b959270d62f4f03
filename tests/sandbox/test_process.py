"""Entries that hang, swell, crash or lie: each ends in one sentence, and nothing of it is left."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from pathlib import Path
from textwrap import indent

import psutil
import pytest
import torch

from bench.core.errors import PluginError
from bench.sandbox import isolation
from bench.sandbox.isolation import MIB, Limits
from bench.training.defense_builder import DefenseBuilder
from tests.fixtures.known_models import digits
from tests.sandbox.isolated import PLAIN, entry, locked, none_left

pytestmark = [pytest.mark.usefixtures("walls"), pytest.mark.slow]

QUICK = Limits(memory=1024 * MIB, build=8.0, call=4.0)

IMPORT = {
    "an import that never ends": ("while True: pass", "gave no answer in 8 s, and was ended"),
    "an error": ("1 / 0", r"failed: ZeroDivisionError: division by zero \(plugin.py, line 5\)"),
    "no Python": ("def", "failed: SyntaxError"),
    "an exit": ("raise SystemExit(0)", "failed: SystemExit: 0"),
    "an interrupt": ("raise KeyboardInterrupt", "gave no answer: its process"),
    "a silent exit": ("import os; os._exit(0)", "ended by itself, with status 0"),
    "an unknown library": ("import numppy", "ModuleNotFoundError: No module named 'numppy'"),
    "an error without words": ("raise EOFError", r"failed: EOFError \(plugin.py"),
    "an error of a megabyte": ("raise ValueError('x' * 10**6)", "failed: ValueError: x+"),
    "an error that paints": (
        r"raise ValueError('\x1b[31mred\x1b[0m\x07\n\u202eback')", r"ValueError: red +back"
    ),
    "an error that cannot be told": (
        "class Shy(Exception):\n    def __str__(self): raise self\nraise Shy",
        "gave no answer: its process ended by itself",
    ),
}  # fmt: skip
"""Code at the top of the entry, and what is said of it."""

FORWARD = {
    "an endless loop": ("while True: pass", "gave no answer in 4 s, and was ended"),
    "a sleep that ignores signals": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
        "gave no answer in 4 s, and was ended",
    ),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "died of SIGSEGV"),
    "an abort": ("import os; os.abort()", "died of (SIGABRT|SIGSEGV)"),
    "its own end": ("import os; os.kill(os.getpid(), 9); os._exit(9)", "SIGKILL|with status 9"),
    "the end of all": ("import os; os.kill(-1, 9); 1 / 0", "failed|gave no answer"),
    "the end of its parent": ("import os; os.kill(os.getppid(), 9); 1 / 0", "failed|gave no"),
    "a fork bomb": (
        "import os\nwhile True: os.fork()", "temporarily unavailable|gave no answer"
    ),
    "a huge tensor": ("torch.ones(2**34)", "failed: .*(allocate|memory)"),
    "memory by many": (
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0:\n"
        "        block = bytearray(2**27)\n        time.sleep(60)\ntime.sleep(60)",
        r"used \d+ MiB of memory; 1024 MiB may be used",
    ),
    "memory by many, behind closed outputs": (
        "import os, time\nos.close(1)\nos.close(2)\nfor _ in range(12):\n"
        "    if os.fork() == 0:\n        block = bytearray(2**27)\n        time.sleep(60)\n"
        "time.sleep(60)",
        r"used \d+ MiB of memory; 1024 MiB may be used",
    ),
    "a leak": (
        "kept = []\nwhile True: kept.append(torch.rand(2**20))",
        r"used \d+ MiB of memory; 1024 MiB may|failed: .*(allocate|memory)",
    ),
    "a flood of words": ("while True: print('x' * 1000)", "printed more than 1 MiB"),
    "a flood of bytes": (
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
    "nothing": ("return None", "answered with NoneType; a tensor of logits"),
    "a list": ("return [0.0]", "answered with list; a tensor of logits"),
    "a wrong shape": ("return torch.zeros(len(images))", r"torch.float32 \(8,\) for 8 images"),
    "one row too few": ("return torch.zeros(len(images) - 1, 10)", r"\(7, 10\) for 8 images"),
    "whole numbers": ("return torch.zeros(len(images), 10).long()", "torch.int64"),
    "complex numbers": ("return torch.zeros(len(images), 10) * 1j", "complex64"),
    "sparse logits": ("return torch.zeros(len(images), 10).to_sparse()", "failed: "),
    "a million classes": ("return torch.zeros(len(images), 10**6)", "bytes was announced"),
    "garbage on the wire": ("wire().sendall(b'x' * 100)\nreturn logits(images)", "is no frame"),
    "a petabyte announced": (
        "wire().sendall(HEAD.pack(MARK, 2, 2, 2**50))\nreturn logits(images)",
        "bytes was announced",
    ),
    "half an answer": (
        "wire().sendall(HEAD.pack(MARK, 2, 2, 0))\nimport time; time.sleep(60)",
        "gave no answer in 4 s",
    ),
    "an answer to another question": (
        "wire().sendall(HEAD.pack(MARK, 9, 2, 0) + b'{}')", "an answer came for question 9, not 2"
    ),
    "an answer without a tensor": (
        "wire().sendall(HEAD.pack(MARK, 2, 2, 0) + b'{}')", "tensors came without their names"
    ),
    "a wish where none is due": (
        "wire().sendall(HEAD.pack(MARK, 2, 18, 0) + b'{\"ask\": \"trained\"}')",
        "tensors came without their names",
    ),
    "no wire at all": ("wire().close()\nreturn logits(images)", "gave no answer: "),
}  # fmt: skip
"""Code in `forward`, and what is said of it."""

SLOPE = {
    "an endless slope": ("while True: pass", "gave no answer in 4 s"),
    "a slope that raises": ("raise ValueError('downhill')", "failed: ValueError: downhill"),
    "a slope that crashes": ("import os; os.abort()", "died of (SIGABRT|SIGSEGV)"),
}
"""Code in the backward pass."""

HEAD = """
import gc, socket
from bench.sandbox.wire import HEAD, MARK


def wire():
    return next(o for o in gc.get_objects() if isinstance(o, socket.socket))


def logits(images):
    return images.flatten(1)[:, :10] * 1


class Bent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, slope):
SLOPE
        return slope
"""


def hostile(forward: str = "pass", slope: str = "pass") -> str:
    """PLAIN, with this code in its forward and backward pass."""
    head = HEAD.replace("SLOPE", indent(slope, " " * 8))
    body = indent(f"{forward}\nimages = Bent.apply(images)", " " * 8).lstrip()
    source = PLAIN.replace("class Net", f"{head}\n\nclass Net", 1)
    return source.replace("return self.layer", f"{body}\n        return self.layer", 1)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, and no spare worker that was started under others."""
    monkeypatch.setattr(isolation, "LIMITS", QUICK)


@pytest.mark.parametrize("kind", IMPORT)
def test_an_import_goes_wrong(kind: str, tmp_path: Path) -> None:
    code, sentence = IMPORT[kind]
    entry(tmp_path, f'"""An entry."""\n\n\n\n{code}\n{PLAIN}')
    registry = locked(tmp_path)
    assert registry.not_imported() == ["mine"]
    why = registry.why_not_imported("mine")
    assert why.startswith("submission mine ")
    _is_a_sentence(why, sentence)


@pytest.mark.parametrize("kind", FORWARD)
def test_an_answer_goes_wrong(kind: str, tmp_path: Path) -> None:
    code, sentence = FORWARD[kind]
    entry(tmp_path, hostile(code))
    _ends(tmp_path, sentence)


@pytest.mark.parametrize("kind", SLOPE)
def test_a_slope_goes_wrong(kind: str, tmp_path: Path) -> None:
    code, sentence = SLOPE[kind]
    entry(tmp_path, hostile(slope=code))
    _ends(tmp_path, sentence)


def test_the_frame_of_all_these_is_an_honest_entry(tmp_path: Path) -> None:
    entry(tmp_path, hostile())
    module, leaf = _built(tmp_path), digits(8)[0].requires_grad_()
    module(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.any()


def test_an_answer_sent_twice_is_found_out_at_the_next_question(tmp_path: Path) -> None:
    code = (
        "told, parts = packed({'logits': logits(images)})\n"
        "text = __import__('json').dumps({'tensors': told, 'drew': False}).encode()\n"
        "body = b''.join(map(bytes, parts))\n"
        "wire().sendall(HEAD.pack(MARK, 2, len(text), len(body)) + text + body)"
    )
    entry(tmp_path, hostile(code).replace("import HEAD, MARK", "import HEAD, MARK, packed"))
    module, x = _built(tmp_path), digits(8)[0]
    module(x)
    with pytest.raises(PluginError, match="an answer came for question 2, not 3"):
        module(x)


def test_whoever_stays_behind_goes_with_the_worker(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)"
    )
    entry(tmp_path, hostile(code))
    module = _built(tmp_path)
    module(digits(8)[0])
    del module
    gc.collect()
    assert none_left()


ENDLESS = """
from bench.sandbox.process import SandboxProcess
cage = SandboxProcess()
cage.start()
print(cage.guardian.process.pid, flush=True)
words = {"do": "declare attack", "kind": "attack", "name": "x", "path": "p.py", "threads": 1}
cage.ask("x", words, b"while True: pass", seconds=60)
"""


def test_a_harness_that_is_killed_takes_its_worker_along() -> None:
    program = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        worker = psutil.Process(int(harness.stdout.readline()))
        time.sleep(0.5)
        family = [worker, *worker.children(recursive=True)]
        harness.kill()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert len(family) > 1


def test_what_is_patched_inside_stays_inside(tmp_path: Path) -> None:
    code = (
        "torch.argmax = torch.Tensor.argmax = lambda *a, **k: torch.zeros(8).long()\n"
        "torch.equal = lambda a, b: True\ntorch.manual_seed(0)\nimages.zero_()"
    )
    entry(tmp_path, hostile(code))
    module, x = _built(tmp_path), digits(8)[0]
    before = x.clone()
    assert torch.equal(module(x), module(x))
    assert torch.equal(x, before)
    assert not torch.equal(x, x + 1)
    assert torch.eye(3).argmax(1).tolist() == [0, 1, 2]


def _built(folder: Path) -> torch.nn.Module:
    registry = locked(folder)
    assert registry.reasons_not_imported == {}
    return DefenseBuilder(registry, "mine", registry.find("dataset", "digits").value).build()


def _ends(folder: Path, sentence: str) -> None:
    """Asking for logits and a slope ends in this sentence, soon, and no worker is left."""
    module, leaf = _built(folder), digits(8)[0].requires_grad_()
    since = time.monotonic()
    with pytest.raises(PluginError) as raised:
        module(leaf).sum().backward()
    assert time.monotonic() - since < 30
    _is_a_sentence(str(raised.value), sentence)
    with pytest.raises(PluginError):  # another worker, the same end
        module(leaf).sum().backward()
    del module, raised
    gc.collect()
    assert none_left()


def _is_a_sentence(said: str, expected: str) -> None:
    assert re.search(expected, said), said
    assert said.startswith("submission mine ") or "answered" in said
    assert said.isprintable()
    assert len(said) < 600

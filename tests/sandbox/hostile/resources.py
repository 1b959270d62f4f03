"""Submissions that take memory, time, files or output without end."""

from __future__ import annotations

from functools import partial

from tests.sandbox.hostile.case import End, HostileCase, attack, defense

memory = partial(HostileCase, family="memory", end=End.FAILED)
timing = partial(HostileCase, family="time", end=End.FAILED)
output = partial(HostileCase, family="output", end=End.FAILED)

MEMORY = (
    memory(
        name="one-huge-tensor", code="memory_limit",
        source=defense(forward="torch.ones(2**34)"),
    ),
    memory(
        name="leak", code="memory_limit",
        source=defense(forward="kept = []\nwhile True: kept.append(torch.rand(2**20))"),
    ),
    memory(
        name="memory-of-children", code="memory_limit",
        source=defense(forward="""
            import os, time
            for _ in range(8):
                if os.fork() == 0:
                    block = bytearray(2**27)
                    time.sleep(60)
            time.sleep(60)
        """),
    ),
    memory(
        name="shared-mapping", code="blocked", sentence="PermissionError",
        source=defense(forward="""
            import mmap, time
            kept = mmap.mmap(-1, 3 * 2**29)
            for at in range(0, len(kept), 4096): kept[at] = 1
            time.sleep(60)
        """),
    ),
    memory(
        name="memfd-without-mapping", code="blocked", sentence="PermissionError|MiB of memory",
        source=defense(forward="""
            import os, time
            kept = []
            for _ in range(24):
                kept.append(os.memfd_create("kept"))
                for _ in range(60): os.write(kept[-1], bytes(2**20))
            time.sleep(60)
        """),
    ),
    memory(
        name="memfd-in-flight", code="blocked", sentence="PermissionError|MiB of memory",
        source=defense(forward="""
            import os, socket, time
            one, two = socket.socketpair()
            for _ in range(24):
                made = os.memfd_create("sent")
                for _ in range(60): os.write(made, bytes(2**20))
                socket.send_fds(one, [b"x"], [made])
                os.close(made)
            time.sleep(60)
        """),
    ),
    memory(
        name="system-v-shared-memory", code="blocked", sentence="refused|MiB of memory",
        source=defense(forward="""
            import ctypes, time
            libc = ctypes.CDLL(None, use_errno=True)
            libc.shmat.restype = ctypes.c_void_p
            libc.shmdt.argtypes = (ctypes.c_void_p,)
            for _ in range(24):
                number = libc.shmget(0, ctypes.c_size_t(60 * 2**20), 0o1600)
                if number < 0: raise PermissionError(ctypes.get_errno(), "refused")
                at = libc.shmat(number, None, 0)
                ctypes.memset(at, 1, 60 * 2**20)
                libc.shmdt(at)
            time.sleep(60)
        """),
    ),
    memory(
        name="full-pipes", code="ok", end=End.UNCHANGED,
        source=defense(forward="""
            import fcntl, os
            if self.calls == 1:
                self.kept = []
                for _ in range(80):
                    ends = os.pipe()
                    self.kept.append(ends)
                    os.set_blocking(ends[1], False)
                    try:
                        fcntl.fcntl(ends[1], 1031, 2**20)
                    except OSError:
                        pass
                    try:
                        os.write(ends[1], bytes(2**20))
                    except OSError:
                        pass
        """),
    ),
    memory(
        name="memory-just-below-the-limit", code="ok", end=End.UNCHANGED,
        source=defense(forward="self.kept = bytearray(100 * 2**20)"),
    ),
    memory(
        name="attack-that-leaks", code="memory_limit", kind="attack",
        source=attack(step="kept = []\nwhile True: kept.append(torch.rand(2**20))"),
    ),
)  # fmt: skip

TIMES = (
    timing(
        name="endless-import", code="rejected_submission", end=End.NOT_LOADED,
        sentence="gave no answer within", source=defense(top="while True: pass"),
    ),
    timing(
        name="slow-import-below-the-limit", code="ok", end=End.UNCHANGED,
        source=defense(top="import time\ntime.sleep(1)"),
    ),
    timing(name="endless-build", code="timeout", source=defense(build="while True: pass")),
    timing(
        name="endless-loop", code="timeout", sentence="at least .* images/s are needed",
        source=defense(forward="while True: pass"),
    ),
    timing(
        name="sleep-that-ignores-signals", code="timeout",
        source=defense(forward="""
            import signal, time
            for number in set(signal.valid_signals()) - {9, 19}:
                signal.signal(number, signal.SIG_IGN)
            time.sleep(1000)
        """),
    ),
    timing(
        name="slow-for-large-batches", code="timeout",
        source=defense(forward="""
            import time
            if len(images) > 8: time.sleep(60)
        """),
    ),
    timing(
        name="just-below-the-limit-of-a-call", code="ok", end=End.UNCHANGED,
        source=defense(forward="""
            import time
            if self.calls == 1: time.sleep(1)
        """),
    ),
    timing(
        name="endless-gradient", code="timeout",
        source=defense(
            top="""
                class Endless(torch.autograd.Function):
                    @staticmethod
                    def forward(ctx, images):
                        return images.clone()

                    @staticmethod
                    def backward(ctx, gradient):
                        while True: pass
            """,
            forward="images = Endless.apply(images)",
        ),
    ),
    timing(
        name="recursion-without-end", code="plugin_error", sentence="RecursionError",
        source=defense(forward="f = lambda: f()\nf()"),
    ),
    timing(
        name="attack-without-end", code="timeout", kind="attack",
        source=attack(step="while True: pass"),
    ),
    timing(
        name="attack-with-endless-queries", code="timeout", kind="attack",
        source=attack(step="while True: problem.logits(adv)"),
        sentence="gave no answer within|queries|budget",
    ),
)  # fmt: skip

OUTPUT = (
    output(
        name="gigabytes-of-text", code="output_limit",
        source=defense(forward="while True: print('x' * 10**5)"),
    ),
    output(
        name="output-of-children", code="output_limit",
        source=defense(forward="""
            import os, time
            for _ in range(4):
                if os.fork() == 0:
                    while True: os.write(1, b"x" * 10**5)
            time.sleep(60)
        """),
    ),
    output(
        name="closed-output", code="ok", end=End.UNCHANGED,
        source=defense(forward="import os\nif self.calls == 1: os.close(1); os.close(2)"),
    ),
    output(
        name="escapes-in-an-error", code="plugin_error",
        sentence="ValueError: red +back",
        source=defense(forward=r"raise ValueError('\x1b[31mred\x1b[0m\x07\r\n\u202eback\x00')"),
    ),
    output(
        name="invalid-unicode-in-an-error", code="plugin_error", sentence="ValueError",
        source=defense(forward=r"raise ValueError('\udcff\ud800 surrogate')"),
    ),
    output(
        name="megabytes-in-an-error", code="plugin_error", sentence="ValueError: x+",
        source=defense(forward="raise ValueError('x' * 10**7)"),
    ),
    output(
        name="error-whose-text-fails", code="worker_died",
        source=defense(
            top="""
                class ShyError(Exception):
                    def __str__(self): raise ValueError("no text")
                    __repr__ = __str__
            """,
            forward="raise ShyError()",
        ),
    ),
    output(
        name="error-whose-text-exits", code="worker_died", sentence="",
        source=defense(
            top="""
                class QuitError(Exception):
                    def __str__(self):
                        import os
                        os._exit(5)
                    __repr__ = __str__
            """,
            forward="raise QuitError()",
        ),
    ),
    output(
        name="error-with-a-forged-name", code="plugin_error", sentence="",
        source=defense(forward=r"""
            raise type("UnavailableError\n\x1b[2J", (Exception,), {})("the harness is at fault")
        """),
    ),
)  # fmt: skip

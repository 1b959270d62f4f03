"""Submissions that start processes, outlive their call, or signal other processes."""

from __future__ import annotations

from tests.sandbox.hostile.case import TRIALS, End, HostileCase, attack, defense


def case(name: str, code: str, end: End, source: str, **fields: str) -> HostileCase:
    """A case of this family."""
    return HostileCase(name, "processes", source, code, end, **fields)  # type: ignore[arg-type]


DOUBLE_FORK = """
import os, time
if self.calls == 1 and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
"""

PROCESSES = (
    case(
        "fork-bomb", "process_limit", End.FAILED,
        defense(forward="import os\nwhile True: os.fork()"),
        sentence="Resource temporarily unavailable|gave no answer",
    ),
    case(
        "fork-bomb-with-exec", "process_limit", End.FAILED,
        defense(forward="""
            import subprocess
            while True: subprocess.Popen(["/usr/bin/sleep", "1000"])
        """),
    ),
    case(
        "thread-bomb", "process_limit", End.FAILED,
        defense(forward="""
            import threading, time
            while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        """),
    ),
    case("daemon-by-double-fork", "ok", End.UNCHANGED, defense(forward=DOUBLE_FORK)),
    case(
        "daemon-that-ignores-signals", "ok", End.UNCHANGED,
        defense(forward="""
            import os, signal, time
            if self.calls == 1 and os.fork() == 0:
                for number in set(signal.valid_signals()) - {9, 19}:
                    signal.signal(number, signal.SIG_IGN)
                os.setsid()
                time.sleep(1000)
        """),
    ),
    case(
        "daemon-that-holds-the-channel", "worker_died", End.FAILED,
        defense(forward="""
            import os, time
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        """),
    ),
    case(
        "children-that-respawn", "ok", End.UNCHANGED,
        defense(forward="""
            import os, time
            if self.calls == 1 and os.fork() == 0:
                while True:
                    if os.fork() == 0:
                        time.sleep(0.05)
                        os._exit(0)
                    os.wait()
        """),
    ),
    case(
        "two-processes-answer", "protocol", End.FAILED,
        defense(forward="import os\nos.fork()"),
        sentence="a reply to request|are no frame",
    ),
    case(
        "kills-its-parent", "plugin_error", End.FAILED,
        defense(forward="""
            import os, signal
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL):
                os.kill(os.getppid(), number)
            raise ValueError("the parent is alive")
        """),
        sentence="the parent is alive|failed|gave no answer",
    ),
    case(
        "kills-everything", "worker_died", End.FAILED,
        defense(forward="""
            import os
            try:
                os.kill(-1, 9)
            except OSError:
                pass
            os.kill(os.getpid(), 9)
            os._exit(9)
        """),
    ),
    case(
        "stops-itself", "timeout", End.FAILED,
        defense(forward="import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"
                        "\nimport time\ntime.sleep(1000)"),
    ),
    case(
        "traces-and-new-namespaces", "blocked", End.FAILED,
        defense(top=TRIALS, forward="""
            import ctypes, os
            libc = ctypes.CDLL(None, use_errno=True)
            def kernel(answer):
                if answer < 0: raise OSError(ctypes.get_errno(), "refused")
                return answer
            attempt(
                lambda: kernel(libc.ptrace(16, os.getppid(), 0, 0)),
                lambda: kernel(libc.ptrace(0, 0, 0, 0)),
                lambda: kernel(libc.unshare(0x10000000)),
                lambda: kernel(libc.unshare(0x00020000)),
                lambda: kernel(libc.setns(os.open("/proc/self/ns/pid", os.O_RDONLY), 0)),
                lambda: kernel(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
                lambda: kernel(libc.umount2(b"/tmp", 2)),
                lambda: os.setuid(0),
                lambda: os.setgroups([0]),
                lambda: os.chroot("/tmp"),
            )
        """),
    ),
    case(
        "raises-its-limits", "blocked", End.FAILED,
        defense(top=TRIALS, forward="""
            import os, resource
            limits = (resource.RLIMIT_NPROC, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE,
                      resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)
            attempt(*(lambda kind=kind: resource.setrlimit(kind, (2**40, 2**40))
                      for kind in limits),
                    lambda: os.nice(-20), lambda: os.sched_setscheduler(0, os.SCHED_FIFO,
                                                                        os.sched_param(50)))
        """),
    ),
    case(
        "attack-with-a-daemon", "ok", End.UNCHANGED, attack(step=DOUBLE_FORK), kind="attack",
    ),
)  # fmt: skip
"""Every case of the family."""

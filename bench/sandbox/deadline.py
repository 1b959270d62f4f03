"""The wall-clock limit of a cell, which also holds for certifiers, diagnostics and reproduction.

The figure is `Limits.cell`. A call of a sandboxed worker ends with it; code of this process is
interrupted where it writes nothing.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.core.errors import PluginError
from bench.sandbox import isolation

GRACE_SECONDS = 1.0
"""So much later code of this process is interrupted, once the calls of workers have ended."""
REPEAT_SECONDS = 1.0  # between two interruptions of code that goes on all the same


class CellDeadline:
    """The time by which the current cell must be finished."""

    def __init__(self) -> None:
        self.until = math.inf
        """On the monotonic clock; infinite outside a cell."""

    @property
    def passed(self) -> bool:
        """Whether the cell should have been finished."""
        return time.monotonic() >= self.until

    @contextmanager
    def cell(self) -> Iterator[None]:
        """A cell begins here, and ends with this context."""
        before, self.until = self.until, time.monotonic() + isolation.LIMITS.cell
        try:
            yield
        finally:
            self.until = before

    @contextmanager
    def interrupting(self, title: str) -> Iterator[None]:
        """A cell of code that writes nothing: PluginError is raised in it after the limit.

        `title` names the code. It is interrupted between two Python instructions, in the main
        thread of systems with timers of their own (not on Windows); elsewhere only the calls of
        workers end.
        """
        with self.cell():
            if hasattr(signal, "setitimer") and _in_main_thread():
                with _interrupted_after(isolation.LIMITS.cell, title):
                    yield
            else:
                yield


CELL_DEADLINE = CellDeadline()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _interrupted_after(seconds: float, title: str) -> Iterator[None]:
    active = True

    def interrupt(*_: object) -> None:
        if active:
            raise PluginError(
                f"{title} did not finish within {seconds:g} s: make it faster, or give it fewer"
                " examples."
            )

    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS, REPEAT_SECONDS)
    try:
        try:
            yield
        finally:
            active = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)

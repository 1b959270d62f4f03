"""Stops a run on Ctrl-C, SIGTERM or SIGHUP: first after the group it computes, then at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

STOP_SECONDS = 20.0
"""How long a run that was asked to stop goes on to the end of its group."""
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

_NOTICE = (
    "bench: stopping after the current group of examples, within {seconds:.0f} seconds; a second"
    " signal stops at once. The same command continues.\n"
)


class Level(Protocol):
    """How far a run is to stop: 0 not, 1 after the group, 2 at once; processes may share it."""

    value: int


@dataclass
class OwnLevel:
    """A level that belongs to one process."""

    value: int = 0


@dataclass
class StopRequest:
    """Whether a run was asked to stop, by a signal or by the process that started it."""

    level: Level = field(default_factory=OwnLevel)
    parent: int | None = None
    """Process without which this one ends; None where it ends by itself."""
    _since: float | None = None

    @property
    def requested(self) -> bool:
        """Whether the run is to stop after its group, or at once."""
        return self.level.value > 0

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt where the run is to stop; called between two groups."""
        self.raise_if_overdue()
        if self.requested:
            raise KeyboardInterrupt

    def raise_if_overdue(self) -> None:
        """Raise KeyboardInterrupt where the run is to stop at once; called within a group."""
        if self.parent is not None and os.getppid() != self.parent:
            raise KeyboardInterrupt
        if not self.requested:
            return
        now = time.monotonic()
        self._since = self._since or now
        if self.level.value > 1 or now - self._since >= STOP_SECONDS:
            raise KeyboardInterrupt


@contextmanager
def stopped_by_signals(stop: StopRequest, *, quiet: bool = False) -> Iterator[None]:
    """Signals ask the run inside to stop: the first after its group, the second at once.

    Signals to this process are counted, since a worker that got the first one, too, may have
    written the level that they share before this process does.
    """
    received = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        stop.level.value = max(stop.level.value, received)
        if received > 1:
            raise KeyboardInterrupt
        if not quiet:
            # The streams of Python must not be written from a handler that may interrupt a write.
            with suppress(OSError):
                os.write(2, _NOTICE.format(seconds=STOP_SECONDS).encode())

    with _handled(ask):
        yield


@contextmanager
def stopped_by_parent(stop: StopRequest) -> Iterator[None]:
    """Signals ask this worker to stop after its group, or at once where its parent says so.

    A terminal and a service manager signal a run and its workers together, so the number of
    signals that a worker gets says nothing.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.level.value > 1:
            raise KeyboardInterrupt
        stop.level.value = max(stop.level.value, 1)

    with _handled(ask):
        unblock_signals()
        yield


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """The handler of every signal that stops a run, except of those that are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    chosen = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in chosen}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Signals that come inside are delivered afterwards; a process started inside blocks them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    """Accept the signals that were blocked when this process was started."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

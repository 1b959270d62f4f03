"""A sandboxed worker process, as the harness controls it: started, called, monitored, ended."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from bench.core.cpu_time import WORKER_METERS
from bench.core.errors import PluginError, UnavailableError
from bench.sandbox import isolation, system_calls
from bench.sandbox.deadline import CELL_DEADLINE
from bench.sandbox.isolation import Limits
from bench.sandbox.monitor import ProcessMonitor
from bench.sandbox.orphans import end_orphans_once
from bench.sandbox.protocol import (
    BadFrameError,
    Channel,
    ConnectionClosedError,
    Frame,
    ReplyTimeoutError,
    decode_tensors,
)
from bench.sandbox.usage import CpuMeter

START_SECONDS = 120.0  # limit for the start of a worker: it imports torch

Message: TypeAlias = tuple[Mapping[str, Any], Sequence[Any]]
"""The header of a frame, and the parts of its body."""
Exchange: TypeAlias = Callable[[Message], Frame]
"""Sends a message to the worker and returns the next frame from it."""
RequestHandler: TypeAlias = Callable[[Frame, Exchange], Message]
"""Answers a request that a worker makes before its reply."""


class WorkerClock:
    """CPU seconds of all worker processes of this process, each from its first request on."""

    def __init__(self) -> None:
        self.ended = 0.0
        """Seconds of those that have ended."""
        self.running: dict[CpuMeter, float] = {}
        """Meter -> its seconds at the first request: the import of torch is no cost of a cell."""

    def begin(self, meter: CpuMeter) -> None:
        """Count what this meter shows from now on."""
        self.running[meter] = meter.seconds()

    def end(self, meter: CpuMeter) -> None:
        """Keep what this meter shows before its process is ended."""
        if meter in self.running:
            self.ended += meter.seconds() - self.running.pop(meter)

    def seconds(self) -> float:
        """CPU seconds so far."""
        running = list(self.running.items())
        return self.ended + sum(meter.seconds() - began for meter, began in running)


WORKER_CLOCK = WorkerClock()
WORKER_METERS.append(WORKER_CLOCK.seconds)


def _start_process(limits: Limits, channel: int) -> subprocess.Popen[bytes]:
    """Start a worker that inherits the descriptor of its end of the socket."""
    syscall_filter = system_calls.syscall_filter()
    # The environment is empty before bubblewrap: its first process shows it inside.
    process = subprocess.Popen(
        isolation.command(limits, channel, syscall_filter),
        env={}, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, pass_fds=(channel, syscall_filter), bufsize=0,
        start_new_session=True,
    )  # fmt: skip
    os.close(syscall_filter)
    return process


class SandboxProcess:
    """One worker process with the code of one submission."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Start the process without waiting. Raises UnavailableError where there is no sandbox."""
        if isolation.why_unavailable():
            raise UnavailableError(
                f"the sandbox cannot be started on this machine: {isolation.why_unavailable()}."
            )
        end_orphans_once()
        self.limits = limits or isolation.LIMITS
        own, other = socket.socketpair()
        with other:
            process = _start_process(self.limits, other.fileno())
        self.monitor = ProcessMonitor(process, self.limits)
        self.channel = Channel(own)
        self.number = 0
        """Number of the last finished request; -1 while one is unfinished."""
        self.ready = False
        self._finalizer = weakref.finalize(self, _close, self.monitor, own)

    @property
    def alive(self) -> bool:
        """Whether it can be called."""
        return self._finalizer.alive

    @property
    def running(self) -> bool:
        """Whether its operating system process exists."""
        return self.alive and self.monitor.process.poll() is None

    def close(self) -> None:
        """End the process; deleting this object does it, too."""
        self._finalizer()

    def start(self) -> None:
        """Wait until the process can be called.

        Raises UnavailableError with its output where it does not start.
        """
        if self.ready:
            return
        try:
            self.channel.receive(0, time.monotonic() + START_SECONDS)
        except (ConnectionClosedError, ReplyTimeoutError, BadFrameError) as error:
            self.close()
            output = printable(self.monitor.output_tail.decode(errors="replace"))
            raise UnavailableError(
                "the sandbox cannot be started on this machine: "
                f"{output or self.monitor.exit_reason()}."
            ) from error
        self.ready = True
        WORKER_CLOCK.begin(self.monitor.cpu)

    def call(
        self,
        title: str,
        header: Mapping[str, Any],
        *parts: Any,
        seconds: float,
        largest: int = 0,
        handler: RequestHandler | None = None,
        remedy: str = "make it faster",
    ) -> Frame:
        """Send one request and wait for the reply.

        Args:
            title: names the submission in messages.
            header: the request; `parts` are the bytes of its body.
            seconds: limit of the time in the worker; time in `handler` counts for the cell only.
            largest: bytes that the body of one of its frames may have.
            handler: answers the requests that the worker makes before its reply.
            remedy: what its author can do where it is too slow.

        Returns:
            The reply.

        Raises:
            PluginError: where no valid reply came, or the submission's code raised. The process
                goes on only after the latter.
            UnavailableError: where the process does not start.
        """
        self.start()
        exchange = RequestExchange(self.channel, self.number + 1, seconds, largest)
        self.number = -1  # a request that is interrupted leaves the channel in an unknown state
        try:
            frame = exchange((header, parts))
            while handler is not None and "request" in frame.header:
                frame = exchange(handler(frame, exchange))
            self.number = exchange.number
        except ConnectionClosedError as error:
            raise PluginError(f"{title} gave no answer: {self.monitor.exit_reason()}.") from error
        except ReplyTimeoutError as error:
            if CELL_DEADLINE.passed:
                late = f"did not finish its cell within {isolation.LIMITS.cell:g} s"
            else:
                late = f"gave no answer within {seconds:g} s"
            raise PluginError(f"{title} {late}; its process was ended: {remedy}.") from error
        except BadFrameError as error:
            raise PluginError(f"{title} violated the sandbox protocol: {error}.") from error
        finally:
            if self.number < 0:
                self.close()
        if "error" in frame.header:
            raise PluginError(f"{title} failed: {printable(frame.header['error'])}.")
        return frame

    def tensors(self, title: str, frame: Frame, *names: str) -> dict[str, Tensor]:
        """The tensors [*shape] of a frame by name; with `names` exactly these.

        Raises PluginError, from a BadFrameError, and ends the process where they are not there.
        """
        try:
            found = decode_tensors(frame.header.get("tensors"), frame.body)
            if names and tuple(found) != names:
                raise BadFrameError(
                    f"tensors {printable(list(found))} were sent; expected {list(names)}"
                )
        except BadFrameError as error:
            self.close()
            raise PluginError(f"{title} violated the sandbox protocol: {error}.") from error
        return found


class RequestExchange:
    """The frames of one request: its own, those before the reply, and the reply."""

    def __init__(self, channel: Channel, number: int, seconds: float, largest: int) -> None:
        self.channel, self.number = channel, number
        self.seconds_left, self.largest = seconds, largest

    def __call__(self, message: Message) -> Frame:
        """Send a message and return the worker's next frame; only the wait for it is timed.

        Raises BadFrameError for a frame of another request.
        """
        header, parts = message
        since = time.monotonic()
        until = min(since + self.seconds_left, CELL_DEADLINE.until)
        self.channel.send(self.number, header, *parts, until=until)
        frame = self.channel.receive(self.largest, until)
        self.seconds_left -= time.monotonic() - since
        if frame.number != self.number:
            raise BadFrameError(
                f"a reply to request {frame.number} was received instead of {self.number}"
            )
        return frame


class SpareProcess:
    """Starts the next worker process in advance, because it takes a second to import torch."""

    def __init__(self) -> None:
        self.next: SandboxProcess | None = None

    def take(self) -> SandboxProcess:
        """A process that has not been called yet; the next one is started."""
        ready, self.next = self.next, None
        if ready is not None and not (ready.running and ready.limits == isolation.LIMITS):
            ready.close()
            ready = None
        process = ready or SandboxProcess()
        self.next = SandboxProcess()
        return process


StartProcess: TypeAlias = Callable[[], SandboxProcess]
"""Starts a worker process with the code of one submission."""
SPARE_PROCESS = SpareProcess()


def _close(monitor: ProcessMonitor, end: socket.socket) -> None:
    WORKER_CLOCK.end(monitor.cpu)
    end.close()
    monitor.kill()
    monitor.process.wait()


def printable(text: object) -> str:
    """Text of a submission as the end of a sentence: one short line of printable characters."""
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", str(text))
    visible = "".join(c if c.isprintable() else " " for c in visible)
    return " ".join(visible.split())[-400:].rstrip(".")

"""A sandboxed worker process, as the harness controls it: started, called, monitored, ended."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, TypeAlias

import psutil
from torch import Tensor

from bench.core.errors import PluginError, UnavailableError
from bench.sandbox import isolation
from bench.sandbox.isolation import MIB, Limits
from bench.sandbox.protocol import (
    BadFrameError,
    Channel,
    ConnectionClosedError,
    Frame,
    ReplyTimeoutError,
    decode_tensors,
)

START_SECONDS = 120.0  # limit for the start of a worker: it imports torch
MIN_INTERVAL, MAX_INTERVAL = 0.25, 1.0  # seconds between two measurements of its memory
INTERVAL_FACTOR = 50  # a measurement takes at most 1/50 of the time
TAIL_BYTES = 2000  # of its output, kept for messages

Message: TypeAlias = tuple[Mapping[str, Any], Sequence[Any]]
"""The header of a frame, and the parts of its body."""
Exchange: TypeAlias = Callable[[Message], Frame]
"""Sends a message to the worker and returns the next frame from it."""
RequestHandler: TypeAlias = Callable[[Frame, Exchange], Message]
"""Answers a request that a worker makes before its reply."""


class ProcessMonitor(threading.Thread):
    """Reads a worker's output, measures its memory, and kills it beyond the limits."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        super().__init__(daemon=True, name="monitor of a sandbox process")
        self.process, self.limits = process, limits
        self.output_tail, self.output_bytes = b"", 0
        self.kill_reason = ""  # empty where the process was not killed
        self.start()

    def run(self) -> None:
        """Monitor the process until its output is closed; bubblewrap keeps it open to the end."""
        pipe = self._output_pipe()
        due = time.monotonic() + MIN_INTERVAL
        with pipe:
            while True:
                if select.select([pipe], [], [], MIN_INTERVAL)[0]:
                    chunk = os.read(pipe.fileno(), 1 << 16)
                    if not chunk:
                        break
                    self._add_output(chunk)
                if time.monotonic() > due:
                    due = self._measure()
        self.process.wait()

    def _output_pipe(self) -> IO[bytes]:
        if self.process.stdout is None:
            raise ValueError("the process was started without a pipe for its output")
        return self.process.stdout

    def _measure(self) -> float:
        """Measure the memory; the time of the next measurement, on the monotonic clock."""
        since = time.monotonic()
        self._check_memory()
        now = time.monotonic()
        interval = max(MIN_INTERVAL, INTERVAL_FACTOR * (now - since))
        return now + min(interval, MAX_INTERVAL)

    def _add_output(self, chunk: bytes) -> None:
        self.output_bytes += len(chunk)
        self.output_tail = (self.output_tail + chunk)[-TAIL_BYTES:]
        if self.output_bytes > self.limits.output:
            self.kill(f"it printed more than {self.limits.output // MIB} MiB")

    def _check_memory(self) -> None:
        used = memory_of(self.process.pid)
        if used > self.limits.memory:
            limit = self.limits.memory // MIB
            self.kill(f"its processes used {used // MIB} MiB of memory; the limit is {limit} MiB")

    def kill(self, reason: str = "") -> None:
        """Kill the process and everything in its process namespace."""
        self.kill_reason = self.kill_reason or reason
        self.process.kill()

    def exit_reason(self) -> str:
        """How the process ended, as the end of a sentence."""
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return self.kill_reason or "it closed its end of the channel"
        if self.kill_reason:
            return self.kill_reason
        number = -code if code < 0 else code - 128  # of bubblewrap, or of its child as it reports
        if number > 0:
            names = {known.value: known.name for known in signal.Signals}
            return f"its process was killed by {names.get(number, f'signal {number}')}"
        return f"its process exited with status {code}"


def memory_of(pid: int) -> int:
    """Bytes of memory of a process and its descendants; shared pages are counted once."""
    total = 0
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile
    return total


def _start_process(limits: Limits, channel: int) -> subprocess.Popen[bytes]:
    """Start a worker that inherits the descriptor of its end of the socket."""
    syscall_filter = isolation.syscall_filter()
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

    def call(
        self,
        title: str,
        header: Mapping[str, Any],
        *parts: Any,
        seconds: float,
        largest: int = 0,
        handler: RequestHandler | None = None,
    ) -> Frame:
        """Send one request and wait for the reply.

        Args:
            title: names the submission in messages.
            header: the request; `parts` are the bytes of its body.
            seconds: limit of the time in the worker; time in `handler` does not count.
            largest: bytes that the body of one of its frames may have.
            handler: answers the requests that the worker makes before its reply.

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
            raise PluginError(
                f"{title} gave no answer within {seconds:g} s; its process was ended."
            ) from error
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
        self.channel.send(self.number, header, *parts, until=since + self.seconds_left)
        frame = self.channel.receive(self.largest, since + self.seconds_left)
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
    end.close()
    monitor.kill()
    monitor.process.wait()


def printable(text: object) -> str:
    """Text of a submission as the end of a sentence: one short line of printable characters."""
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", str(text))
    visible = "".join(c if c.isprintable() else " " for c in visible)
    return " ".join(visible.split())[-400:].rstrip(".")

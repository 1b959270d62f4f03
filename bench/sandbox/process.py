"""One worker behind the walls, as the harness holds it: asked, watched, ended."""

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
from typing import Any, TypeAlias

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

BOOT = 120.0  # seconds until a worker is there: it imports torch
LOOK, SELDOM = 0.25, 1.0  # seconds between looks at what it uses, at least and at most
RARELY = 50  # times as long as a look has taken the next one is awaited
TAIL = 2000  # bytes of what it printed that are kept

Reply: TypeAlias = tuple[Mapping[str, Any], Sequence[Any]]
"""Words, and the parts of the body behind them."""
Consult: TypeAlias = Callable[[Reply], Frame]
"""Asks the worker something back, before its own wish is answered."""
Serve: TypeAlias = Callable[[Frame, Consult], Reply]
"""Answers what a worker wishes while a question of the harness waits."""


class ProcessMonitor(threading.Thread):
    """Reads what a worker prints, weighs it, and ends it where it goes too far."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        super().__init__(daemon=True, name="guardian of a worker")
        self.process, self.limits = process, limits
        self.tail = b""
        self.printed = 0
        self.reason = ""
        """Why it was ended; empty where it was not."""
        self.start()

    def run(self) -> None:
        """Until its output is closed: bubblewrap, outside, keeps it open to the end."""
        pipe = self.process.stdout
        if pipe is None:
            raise ValueError("the process was started without a pipe for its output")
        due = time.monotonic() + LOOK
        with pipe:
            while True:
                if select.select([pipe], [], [], LOOK)[0]:
                    chunk = os.read(pipe.fileno(), 1 << 16)
                    if not chunk:
                        break
                    self._hear(chunk)
                since = time.monotonic()
                if since > due:
                    self._weigh()
                    now = time.monotonic()
                    due = now + min(max(LOOK, RARELY * (now - since)), SELDOM)
        self.process.wait()

    def _hear(self, chunk: bytes) -> None:
        self.printed += len(chunk)
        self.tail = (self.tail + chunk)[-TAIL:]
        if self.printed > self.limits.output:
            self.end(f"it printed more than {self.limits.output // MIB} MiB")

    def _weigh(self) -> None:
        used = memory_of(self.process.pid)
        if used > self.limits.memory:
            most = self.limits.memory // MIB
            self.end(f"its processes used {used // MIB} MiB of memory; {most} MiB may be used")

    def end(self, reason: str = "") -> None:
        """Kill it and all that it started: with the first process its whole space of them goes."""
        self.reason = self.reason or reason
        self.process.kill()

    def fate(self) -> str:
        """How it ended, as the end of a sentence."""
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return self.reason or "it closed its end of the channel"
        if self.reason:
            return self.reason
        number = -code if code < 0 else code - 128  # bubblewrap's own, or its child's as it tells
        if number > 0:
            names = {known.value: known.name for known in signal.Signals}
            return f"its process died of {names.get(number, f'signal {number}')}"
        return f"its process ended by itself, with status {code}"


def memory_of(pid: int) -> int:
    """Bytes of memory of a process and all below it; what two of them share counts once."""
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


class SandboxProcess:
    """A worker: one process that holds a stranger's code, and nothing else holds it."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Start it; it is awaited with the first question. UnavailableError without isolation."""
        if isolation.why_unavailable():
            raise UnavailableError(f"no sandbox can be made here: {isolation.why_unavailable()}.")
        self.limits = limits or isolation.LIMITS
        own, theirs = socket.socketpair()
        rules = isolation.forbid()
        with theirs:
            # The environment is empty before bubblewrap: inside, its first process shows it.
            process = subprocess.Popen(
                isolation.command(self.limits, theirs.fileno(), rules),
                env={}, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, pass_fds=(theirs.fileno(), rules), bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        os.close(rules)
        self.guardian = ProcessMonitor(process, self.limits)
        self.channel = Channel(own)
        self.number = 0
        self.ready = False
        self.closed = weakref.finalize(self, _close, self.guardian, own)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.closed.alive

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.alive and self.guardian.process.poll() is None

    def close(self) -> None:
        """End it."""
        self.closed()

    def start(self) -> None:
        """Wait until it can be asked; UnavailableError with what it said where it never can."""
        if self.ready:
            return
        try:
            self.channel.receive(0, time.monotonic() + BOOT)
        except (ConnectionClosedError, ReplyTimeoutError, BadFrameError) as error:
            self.close()
            said = printable(self.guardian.tail.decode(errors="replace"))
            raise UnavailableError(
                f"the sandbox did not start: {said or self.guardian.fate()}."
            ) from error
        self.ready = True

    def ask(
        self,
        who: str,
        words: Mapping[str, Any],
        *parts: Any,
        seconds: float,
        largest: int = 0,
        serve: Serve | None = None,
    ) -> Frame:
        """Put one question and wait for its answer.

        Args:
            who: whose code it holds, for sentences.
            words: the question, and `parts` the bytes behind it.
            seconds: how long the worker may take, the time for its wishes not counted.
            largest: how many bytes a frame of it may have.
            serve: answers what the worker wishes meanwhile.

        Returns:
            The answer. PluginError where there is none, or where the code raised: then the worker
            still stands; in every other case it has been ended.
        """
        self.start()
        talk = Conversation(self.channel, self.number + 1, seconds, largest)
        self.number = -1  # until an answer is whole, nobody knows where the channel stands
        try:
            frame = talk.say((words, parts))
            while serve is not None and "ask" in frame.words:
                frame = talk.say(serve(frame, talk.say))
            self.number = talk.number
        except ConnectionClosedError as error:
            raise PluginError(f"{who} gave no answer: {self.guardian.fate()}.") from error
        except ReplyTimeoutError as error:
            raise PluginError(f"{who} gave no answer in {seconds:g} s, and was ended.") from error
        except BadFrameError as error:
            raise PluginError(f"{who} broke the protocol of its worker: {error}.") from error
        finally:
            if self.number < 0:
                self.close()
        if "error" in frame.words:
            raise PluginError(f"{who} failed: {printable(frame.words['error'])}.")
        return frame

    def tensors(self, who: str, frame: Frame, *names: str) -> dict[str, Tensor]:
        """The tensors of a frame, which must be these where some are named.

        PluginError, and the worker's end, otherwise.
        """
        try:
            found = decode_tensors(frame.words.get("tensors"), frame.body)
            if names and tuple(found) != names:
                raise BadFrameError(
                    f"{printable(list(found))} came where {list(names)} was expected"
                )
        except BadFrameError as error:
            self.close()
            raise PluginError(f"{who} broke the protocol of its worker: {error}.") from error
        return found


class Conversation:
    """All that is said about one question."""

    def __init__(self, channel: Channel, number: int, seconds: float, largest: int) -> None:
        self.channel, self.number = channel, number
        self.left, self.largest = seconds, largest

    def say(self, reply: Reply) -> Frame:
        """Send this and wait for what the worker says to it; the time is the worker's."""
        words, parts = reply
        since = time.monotonic()
        self.channel.send(self.number, words, *parts, until=since + self.left)
        frame = self.channel.receive(self.largest, since + self.left)
        self.left -= time.monotonic() - since
        if frame.number != self.number:
            raise BadFrameError(f"an answer came for question {frame.number}, not {self.number}")
        return frame


class SpareProcess:
    """A worker that starts while another one plays: torch takes its second to be imported."""

    def __init__(self) -> None:
        self.next: SandboxProcess | None = None

    def take(self) -> SandboxProcess:
        """One that nobody has asked yet; the next begins to start."""
        ready, self.next = self.next, None
        if ready is not None and not (ready.running and ready.limits == isolation.LIMITS):
            ready.close()
            ready = None
        cage = ready or SandboxProcess()
        self.next = SandboxProcess()
        return cage


SPARE = SpareProcess()


def _close(guardian: ProcessMonitor, end: socket.socket) -> None:
    end.close()
    guardian.end()
    guardian.process.wait()


def printable(text: object) -> str:
    """A stranger's text as the end of a sentence: one short line that a terminal shows as it is."""
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", str(text))
    visible = "".join(c if c.isprintable() else " " for c in visible)
    return " ".join(visible.split())[-400:].rstrip(".")

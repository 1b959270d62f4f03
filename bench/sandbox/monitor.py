"""Monitors a worker process: reads its output, measures it, and kills it beyond the limits."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from typing import IO

from bench.sandbox.isolation import MIB, Limits
from bench.sandbox.usage import CpuMeter, memory_of, scratch_of

MIN_INTERVAL, MAX_INTERVAL = 0.1, 1.0  # seconds between two measurements
INTERVAL_FACTOR = 100  # a measurement takes at most 1/100 of the time
TAIL_BYTES = 2000  # of its output, kept for messages


class ProcessMonitor(threading.Thread):
    """Reads a worker's output, measures its memory and CPU time, and kills it beyond the limits."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        super().__init__(daemon=True, name="monitor of a sandbox process")
        self.process, self.limits = process, limits
        self.output_tail, self.output_bytes = b"", 0
        self.kill_reason = ""  # empty where the process was not killed
        self.cpu = CpuMeter(process.pid)
        self.start()

    def run(self) -> None:
        """Monitor the process until its output is closed; bubblewrap keeps it open to the end."""
        pipe = self._output_pipe()
        due = time.monotonic() + MIN_INTERVAL
        with pipe:
            while True:
                if select.select([pipe], [], [], max(0.0, due - time.monotonic()))[0]:
                    chunk = os.read(pipe.fileno(), 1 << 16)
                    if not chunk:
                        break
                    self._add_output(chunk)
                if time.monotonic() >= due:
                    due = self._measure()
        self.process.wait()

    def _output_pipe(self) -> IO[bytes]:
        if self.process.stdout is None:
            raise ValueError("the process was started without a pipe for its output")
        return self.process.stdout

    def _measure(self) -> float:
        """Compare with the limits; the time of the next measurement, on the monotonic clock."""
        since = time.monotonic()
        self.cpu.seconds()  # of processes that end before they are next measured
        self._check_memory()
        now = time.monotonic()
        interval = max(MIN_INTERVAL, INTERVAL_FACTOR * (now - since))
        return now + min(interval, MAX_INTERVAL)

    def _add_output(self, chunk: bytes) -> None:
        self.output_bytes += len(chunk)
        self.output_tail = (self.output_tail + chunk)[-TAIL_BYTES:]
        if self.output_bytes > self.limits.output:
            self.kill(f"it printed more than {self.limits.output // MIB} MiB; print less")

    def _check_memory(self) -> None:
        """Kill the process where it holds too much memory, or too many files in /tmp."""
        limits, scratch = self.limits, scratch_of(self.process.pid, self.limits.scratch)
        used = scratch.bytes + memory_of(self.process.pid, limits.memory - scratch.bytes)
        if used > limits.memory:
            self.kill(
                f"its processes used {used // MIB} MiB of memory; the limit is "
                f"{limits.memory // MIB} MiB: use smaller tensors or fewer processes"
            )
        if scratch.files > limits.scratch_files:
            self.kill(f"it made more than {limits.scratch_files} files in /tmp; delete some")

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

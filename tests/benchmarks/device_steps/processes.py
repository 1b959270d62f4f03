"""Step d: one and two processes on one device, and one for each device where there are several."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.benchmarks.device_steps.step import Step

ROOT = Path(__file__).parents[3]
START_SECONDS = 12.0  # about the start of a process, its import of torch included


def run(step: Step) -> None:
    """Measure how many examples a second all processes attack together."""
    device, size = step.device, step.report.content["size"]
    several = torch.cuda.device_count() if device.type == "cuda" else 1
    plans = [(f"{count} on one device", [str(device)] * count) for count in (1, 2)]
    if several > 1:
        plans.append((f"one on each of {several} devices", [f"cuda:{i}" for i in range(several)]))
    else:
        step.leave_out("several devices", f"this machine has {several} of this kind")
    seconds = START_SECONDS if step.size.trained else 0.0
    for what, devices in plans:
        if step.fits(what, 1.5 * seconds):
            since = time.monotonic()
            rates = throughput(devices, step.size.worker_seconds, size)
            step.add(workers=what, processes=len(devices), examples_per_second=sum(rates),
                     each=rates)  # fmt: skip
            seconds = time.monotonic() - since


def throughput(devices: list[str], seconds: float, size: str) -> list[float]:
    """Examples a second of one process on each of these devices, all at the same time.

    Raises RuntimeError where a process fails.
    """
    module = "tests.benchmarks.device_steps.throughput"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, device, str(seconds), size], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for device in devices
    ]  # fmt: skip
    try:
        for process in processes:
            wait_for_line(process)
        # All begin to measure when all are warm.
        answers = [process.stdin for process in processes]
        for pipe in answers:
            if pipe is not None:
                pipe.write("begin\n")
                pipe.flush()
        return [float(json.loads(wait_for_line(process))["rate"]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for_line(process: subprocess.Popen[str]) -> str:
    """The next line of a process; raises RuntimeError where it has ended."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError(f"a process ended with status {process.wait()}; see its messages.")
    return line

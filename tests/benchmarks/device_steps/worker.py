"""The worker process of a device run: it runs the open steps of a report, one after another."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.device_steps.report import (
    DONE,
    FAILED,
    NOT_RUN,
    RUNNING,
    WAITING,
    Report,
    time_limit,
)
from tests.benchmarks.device_steps.sizes import SIZES
from tests.benchmarks.device_steps.step import Step

MODULES = {"a": "verdicts", "b": "speed", "c": "slots", "d": "processes", "e": "training",
           "f": "sandbox"}  # fmt: skip
LEAST_SECONDS = 1.0  # a step with less time is not begun
UNAVAILABLE = 2  # exit status where there is no such device
RETRY = 3  # exit status after an error that leaves the device unusable in this process
PARENT_SECONDS = 0.3  # between two looks for the parent process


def main() -> int:
    """Run the open steps of the report in argv[1] until the time in argv[2]."""
    report, end = Report.load(Path(sys.argv[1])), float(sys.argv[2])
    end_with_parent()
    torch.set_num_threads(1)
    device = torch.device(report.content["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"--device {device} was asked for, and torch finds no CUDA device; use cpu.")
        return UNAVAILABLE
    report.content["machine"] = machine(device)
    report.save()
    for key in list(report.keys(WAITING)):
        if not run_step(report, key, device, end):
            return RETRY
    return 0


def run_step(report: Report, key: str, device: torch.device, end: float) -> bool:
    """Run a step and record how it ended; whether the process can go on."""
    since = time.monotonic()
    limit = time_limit(key, end - since)
    if limit < LEAST_SECONDS:
        reason = f"{max(0.0, limit):.1f} s were left, {LEAST_SECONDS:g} s are the least"
        report.update(key, state=NOT_RUN, message=reason)
        return True
    report.update(key, state=RUNNING, until=since + limit)
    step = Step(report, key, device, SIZES[report.content["size"]], since + limit)
    state, message, usable = DONE, "", True
    try:
        step_function(key)(step)
    except Exception as error:  # a fault in one step must not lose the others
        traceback.print_exc()
        state, message = FAILED, f"{type(error).__name__}: {error}"
        usable = device.type != "cuda" or not isinstance(error, RuntimeError)
    report.update(key, state=state, message=message, seconds=time.monotonic() - since)
    return usable


def step_function(key: str) -> Callable[[Step], None]:
    """The function `run` of a step's module, imported when it is needed."""
    module = importlib.import_module(f"tests.benchmarks.device_steps.{MODULES[key]}")
    function: Callable[[Step], None] = module.run
    return function


def machine(device: torch.device) -> dict[str, Any]:
    """Names and versions of what computes."""
    known: dict[str, Any] = {
        "device": str(device), "torch": torch.__version__, "python": platform.python_version(),
        "cpu": platform.machine(), "devices": torch.cuda.device_count(),
    }  # fmt: skip
    if device.type == "cuda":
        known |= {
            "name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda,
            "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        }  # fmt: skip
    return known


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, whatever it is doing."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    raise SystemExit(main())

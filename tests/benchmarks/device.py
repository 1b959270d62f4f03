"""Measures this project on a CUDA device in a few minutes and writes JSON after each row.

    python -m tests.benchmarks.device [--device cuda] [--minutes 9] --json OUT
    python -m tests.benchmarks.device --table OUT

Steps, in order of worth: (a) the same verdicts as the CPU, (b) speed beside peers, (c) slots and
throughput, (d) several workers and devices, (e) training, (f) a sandboxed defense. Each has a share
of the time that is left. A step that raises or takes too long is recorded with its message, and the
next one runs; what did not fit is named with the reason. The second form prints the tables of a
report in Markdown. `--size small` runs on a CPU in about a minute.

Needed: this repository, Python 3.12 and torch 2.11 (or later ones), scikit-learn, whose digits are
the only data besides random images, and what the engine, the referee and the plugins import:

    torch numpy pillow pluggy safetensors
    pydantic pydantic-core annotated-types typing-extensions typing-inspection
    scikit-learn scipy joblib threadpoolctl cloudpickle narwhals

Step f also needs psutil, pyseccomp and the program bwrap. No database and no web package is
imported. Wheels to carry for the peers, without which step b has no ratios:

    pyautoattack                      (needs numpy, torch)
    torchattacks                      (needs requests, with certifi, charset-normalizer, idna and
                                      urllib3, scipy, tqdm, torchvision; install it with --no-deps,
                                      because it pins releases of 2021)

Images of CUDA machines often have all of these but pluggy, pydantic, pydantic-core,
typing-inspection, annotated-types, pyautoattack and torchattacks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.device_steps import tables
from tests.benchmarks.device_steps.report import FAILED, RUNNING, WAITING, Report

POLL_SECONDS = 0.2
GRACE_SECONDS = 2.0  # beyond a step's limit, before its process is killed
END_SECONDS = 1.0  # before the end of the time, in which the processes are ended
ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run the steps, or print the tables of a report; 0 where every step is done."""
    options = parser().parse_args(arguments)
    if options.table:
        print(tables.markdown(Report.load(options.table).content))
        return 0
    report = Report.begin(options.json, options.device, options.minutes, options.size)
    report = supervise(report, time.monotonic() + 60 * options.minutes)
    print(tables.summary(report.content))
    return 0 if all(step["state"] == "done" for step in report.content["steps"].values()) else 1


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    layout = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser("device", description=__doc__, formatter_class=layout)
    found.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    found.add_argument("--minutes", type=float, default=9.0, help="the program ends within these")
    found.add_argument("--size", choices=("full", "small"), default="full")
    one = found.add_mutually_exclusive_group(required=True)
    one.add_argument("--json", type=Path, help="the report to write")
    one.add_argument("--table", type=Path, help="the report whose tables are printed")
    return found


def supervise(report: Report, end: float) -> Report:
    """Run the open steps in a worker process, a new one after each that has died or hung.

    The report is the worker's while one runs; here it is read, and written after a worker's end.
    """
    while list(report.keys(WAITING)) and time.monotonic() < end - END_SECONDS:
        worker = start_worker(report.path, end - END_SECONDS)
        try:
            reason = wait(worker, report.path, end - END_SECONDS)
        finally:
            kill(worker)
        report = Report.load(report.path)
        for key in list(report.keys(RUNNING)):
            report.update(key, state=FAILED, message=reason)
        if worker.returncode == 2:
            report.stop("the device is not available; see the message of the program")
    report.stop(f"the {report.content['minutes']:g} minutes were over before this step")
    return report


def start_worker(path: Path, end: float) -> subprocess.Popen[bytes]:
    """A worker process, the leader of a process group of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.device_steps.worker", str(path), str(end)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=environment)


def wait(worker: subprocess.Popen[bytes], path: Path, end: float) -> str:
    """Wait until a worker ends, or its step or all steps are over; why the step did not end."""
    while worker.poll() is None:
        report = Report.load(path)
        limits = [report.step(key)["until"] + GRACE_SECONDS for key in report.keys(RUNNING)]
        if time.monotonic() > min([end, *limits]):
            return "stopped: it took longer than its share of the time"
        time.sleep(POLL_SECONDS)
    return f"its process ended with status {worker.returncode}"


def kill(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker's process group and wait for the worker."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


if __name__ == "__main__":
    raise SystemExit(main())

"""Times one run on the device: wall time, busy share, peak memory, and the float32 verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.plugin import Goal
from tests.benchmarks.cases import Case
from tests.benchmarks.device_share import busy_share
from tests.benchmarks.our_runs import Runner
from tests.benchmarks.run_result import referee, verified_images

ONE_RUN_SECONDS = 15.0  # a longer first run is not repeated
BUSY_SECONDS = 5.0  # a longer run is not profiled: its record would not fit into memory


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 may use TF32 inside; restored afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def timed(case: Case, runner: Runner, *, allow_tf32: bool = False) -> dict[str, Any]:
    """The figures of a run: the first one, which loads code and records graphs, and a second one.

    The success of the images is verified in float32 without TF32.
    """
    device = case.x.device
    with tf32(allow_tf32):
        since = time.monotonic()
        run = runner(case, 0)
        first = run.seconds
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        if first < ONE_RUN_SECONDS:
            run = runner(case, 1)
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        busy = None
        if device.type == "cuda" and run.seconds < BUSY_SECONDS:
            busy = busy_share(lambda: runner(case, 1), device)
        spent = time.monotonic() - since
    with tf32(False):
        rules = referee(case, case.ball, Goal(), minimises=False)
        broken = verified_images(rules, run.image)[0] | ~case.correct
    return {
        "examples": len(case.x), "first_seconds": first, "seconds": run.seconds,
        "robust": 1 - float(broken.double().mean()), "forwards": run.forwards,
        "gradients": run.gradients, "calls": run.calls, "busy": busy, "peak_mib": peak,
        "spent": spent,
    }  # fmt: skip

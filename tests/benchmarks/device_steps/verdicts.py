"""Step a: whether the device gives the CPU's verdicts, and its own again; waits of the host."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor

from bench.plugin import Attack, margin
from tests.benchmarks import our_runs
from tests.benchmarks.cases import Case
from tests.benchmarks.device_steps.models import case_on
from tests.benchmarks.device_steps.step import Step
from tests.benchmarks.our_runs import RunOptions
from tests.benchmarks.run_result import RunResult

ATTACKS = ("fgsm", "pgd", "apgd-ce", "square")
LISTED = 20  # examples whose margins are listed
OPTIONS = RunOptions(slots=64)


def run(step: Step) -> None:
    """Run each attack on the CPU, on the device, and on the device again."""
    count, size = step.size.verdict_examples, step.size
    on_cpu = case_on("digits-adv", count, size, torch.device("cpu"))
    on_device = case_on("digits-adv", count, size, step.device)
    seconds = 0.0
    for name in ATTACKS:
        if not step.fits(f"{name} and later attacks", 1.5 * seconds):
            return
        since = time.monotonic()
        chosen = our_runs.attack(name, **({"steps": size.square_steps} if name == "square" else {}))
        our_runs.run(on_device.first(64), chosen, OPTIONS, 0)  # first calls load code
        expected, found, again = (
            our_runs.run(case, chosen, OPTIONS, 0) for case in (on_cpu, on_device, on_device)
        )
        step.add(
            attack=name, examples=count, **compared(on_cpu, expected, found),
            differ_again=int((found.broken != again.broken).sum()),
            cpu_seconds=expected.seconds, device_seconds=again.seconds,
            **host_waits(on_device, chosen),
        )  # fmt: skip
        seconds = time.monotonic() - since


def compared(case: Case, expected: RunResult, found: RunResult) -> dict[str, Any]:
    """How many verdicts differ between the CPU and the device, and with which margins."""
    broken = found.broken.cpu()
    rows = (expected.broken != broken).nonzero()[:, 0][:LISTED]
    pairs = zip(
        rows.tolist(), margins(case, expected.image, rows), margins(case, found.image, rows),
        strict=True,
    )  # fmt: skip
    return {
        "differ": int((expected.broken != broken).sum()),
        "cpu_robust": expected.robust, "device_robust": found.robust,
        "same_images": int((expected.image == found.image.cpu()).flatten(1).all(1).sum()),
        "margins": [
            {"example": row, "cpu_image": ours, "device_image": other} for row, ours, other in pairs
        ],
    }  # fmt: skip


def margins(case: Case, images: Tensor, rows: Tensor) -> list[float]:
    """The margins of the images `rows` [k] of images [n, C, H, W], on the CPU; positive: wrong."""
    if not len(rows):
        return []
    with torch.no_grad():
        found: list[float] = margin(case.model(images.cpu()[rows]), case.y[rows]).tolist()
    return found


def host_waits(case: Case, chosen: Attack) -> dict[str, Any]:
    """Steps of the engine and waits of the host from the first step on; waits on CUDA only."""
    steps, cuda = [0], case.x.device.type == "cuda"

    def beat() -> None:
        steps[0] += 1
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            our_runs.run(case, chosen, OPTIONS._replace(heartbeat=beat), 0)
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing" in str(warning.message) for warning in seen)
    return {"steps": steps[0], "waits": waits if cuda else None}

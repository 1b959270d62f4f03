"""Step c: throughput by the number of slots."""

from __future__ import annotations

import time

from bench.core.cells import Numeric
from tests.benchmarks.device_steps.models import case_on
from tests.benchmarks.device_steps.step import Step
from tests.benchmarks.device_steps.timing import timed
from tests.benchmarks.our_runs import RunOptions, ours

WAVES = 2  # examples for each slot, so that slots are refilled


def run(step: Step) -> None:
    """PGD on both PGD-trained networks with ever more slots."""
    most = max(step.size.slot_counts)
    for name in ("digits-adv", "resnet18-adv"):
        seconds = 0.0
        for slots in step.size.slot_counts:
            if not step.fits(f"{name}, {slots} slots and more", 2 * seconds):
                break
            since = time.monotonic()
            count = min(WAVES * slots, step.size.resnet_examples * most)
            case = case_on(name, count, step.size, step.device)
            options = RunOptions(Numeric.FAST, slots=slots)
            found = timed(case, ours("pgd", options, steps=step.size.pgd_steps))
            rate = found["gradients"] * count / found["seconds"]
            step.add(model=name, slots=slots, examples_per_second=count / found["seconds"],
                     gradients_per_second=rate, **found)  # fmt: skip
            seconds = time.monotonic() - since

"""One process of step d: attacks examples for some seconds and prints how many a second."""

from __future__ import annotations

import json
import sys
import time

import torch

from bench.core.cells import Numeric
from tests.benchmarks.device_steps.models import case_on
from tests.benchmarks.device_steps.sizes import SIZES
from tests.benchmarks.device_steps.worker import end_with_parent
from tests.benchmarks.our_runs import RunOptions, ours


def main() -> None:
    """Warm up, print `ready`, wait for a line, measure, and print the rate as JSON."""
    name, seconds, size = sys.argv[1], float(sys.argv[2]), SIZES[sys.argv[3]]
    end_with_parent()
    torch.set_num_threads(1)
    case = case_on("resnet18-adv", size.resnet_examples, size, torch.device(name))
    runner = ours("pgd", RunOptions(Numeric.FAST, slots=size.slots), steps=size.pgd_steps)
    runner(case, 0)
    print("ready", flush=True)
    sys.stdin.readline()
    since, made = time.monotonic(), 0
    while time.monotonic() - since < seconds:
        runner(case, made)
        made += len(case.x)
    print(json.dumps({"rate": made / (time.monotonic() - since)}), flush=True)


if __name__ == "__main__":
    main()

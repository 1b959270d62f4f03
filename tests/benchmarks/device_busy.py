"""How much of the wall time a device had work, from the profiler's record of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.unit_cost import now


def share(work: Callable[[], object], device: torch.device) -> float:
    """Of the wall time of `work`, the share in which at least one kernel ran."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        since = now(device)
        work()
        seconds = now(device) - since
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in record.events()
        if event.device_type.name == "CUDA"
    ]
    return covered(spans) / 1e6 / seconds


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total

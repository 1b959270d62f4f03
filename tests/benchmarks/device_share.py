"""The share of wall time in which a device ran kernels, from the profiler's record."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.unit_cost import now


def busy_share(work: Callable[[], object], device: torch.device) -> float:
    """The share of the wall time of `work` in which at least one kernel ran, 0 to 1."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        since = now(device)
        work()
        seconds = now(device) - since
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in record.events()
        if event.device_type.name == "CUDA"
    ]
    return union_length(spans) / 1e6 / seconds


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total

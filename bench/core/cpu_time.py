"""CPU time of this process and of the worker processes that compute for it."""

from __future__ import annotations

import time
from collections.abc import Callable

WORKER_METERS: list[Callable[[], float]] = []
"""Each returns the CPU seconds that worker processes of one kind have used so far."""


def cpu_seconds() -> float:
    """CPU seconds that this process and its workers have used so far."""
    return time.process_time() + sum(meter() for meter in WORKER_METERS)

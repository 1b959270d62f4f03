"""A running step of a device run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from tests.benchmarks.device_steps.report import Report
from tests.benchmarks.device_steps.sizes import Size


@dataclass
class Step:
    """A running step: its device, its size, its time, and where its rows go."""

    report: Report
    key: str
    device: torch.device
    size: Size
    until: float

    def left(self) -> float:
        """Seconds until the step must end."""
        return self.until - time.monotonic()

    def fits(self, what: str, seconds: float) -> bool:
        """Whether a part that takes about so many seconds fits; else it is recorded as left out."""
        left = self.left()
        if left < seconds:
            self.leave_out(what, f"{left:.1f} s were left, about {seconds:.1f} s are needed")
        return left >= seconds

    def leave_out(self, what: str, reason: str) -> None:
        """Record a part that was not run, and why."""
        self.report.leave_out(self.key, what, reason)

    def add(self, **row: Any) -> None:
        """Record a row of results."""
        self.report.add(self.key, row)

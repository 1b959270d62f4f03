"""The unit of every figure: the time of one forward and one input gradient per example."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNIT_BATCH = 256
REPEATS = 5


class UnitCost(NamedTuple):
    """Seconds per example, the least of several batches."""

    step: float
    """A forward and the gradient to the input in float32, in eval mode, parameters frozen."""
    forward: float

    def minimum(self, other: UnitCost) -> UnitCost:
        """The lower figures of two measurements."""
        return UnitCost(min(self.step, other.step), min(self.forward, other.forward))


def now(device: torch.device) -> float:
    """CPU seconds of this process; on CUDA wall seconds after the device has finished."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(model: nn.Module, x: Tensor, y: Tensor) -> UnitCost:
    """The unit cost of a frozen model on at most 256 of these examples [n, C, H, W]."""
    x, y = x[:UNIT_BATCH], y[:UNIT_BATCH]

    def step() -> None:
        forward_and_gradient(model, x, y)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    return UnitCost(fastest(step, x.device) / len(x), fastest(forward, x.device) / len(x))


def forward_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One forward and the gradient to the input, for images [n, C, H, W] and labels [n]."""
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)


def fastest(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest of several calls after one untimed call."""
    work()
    seconds = []
    for _ in range(REPEATS):
        since = now(device)
        work()
        seconds.append(now(device) - since)
    return min(seconds)

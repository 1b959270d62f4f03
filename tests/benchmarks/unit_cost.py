"""The unit of every figure: one fused forward and input gradient an example, measured beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 256
REPEATS = 5


class Floor(NamedTuple):
    """Seconds an example, the best of several batches."""

    step: float
    """A forward and a gradient to the input, in eval mode, with frozen parameters, in float32."""
    forward: float

    def least(self, other: Floor) -> Floor:
        """The better of two measurements."""
        return Floor(min(self.step, other.step), min(self.forward, other.forward))


def now(device: torch.device) -> float:
    """Seconds: CPU time of this process; on a device wall time, its queue run empty."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measured(model: nn.Module, x: Tensor, y: Tensor) -> Floor:
    """The floor of a frozen model in one batch of at most 256 of these examples."""
    x, y = x[:BATCH], y[:BATCH]

    def step() -> None:
        fused(model, x, y)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    return Floor(best(step, x.device) / len(x), best(forward, x.device) / len(x))


def fused(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One forward and the gradient to the input, nothing else."""
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)


def best(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of the quickest of several; the first, which warms up, does not count."""
    work()
    seconds = []
    for _ in range(REPEATS):
        since = now(device)
        work()
        seconds.append(now(device) - since)
    return min(seconds)

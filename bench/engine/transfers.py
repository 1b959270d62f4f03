"""Copies from the host to the device that do not make the host wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device, copied from page-locked memory where they are on the host.

    A copy from ordinary memory waits until all work queued on the device is done; this one is
    queued behind that work. The page-locked copy is made at once, so `values` may change later.
    """
    if device.type == "cpu" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)

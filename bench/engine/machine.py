"""The machine class of this process."""

from __future__ import annotations

import torch

from bench.core.machines import Machine


def this_machine(device: torch.device) -> Machine:
    """The machine class of results that this process computes on the device."""
    accelerated = device.type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if accelerated else device.type,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )

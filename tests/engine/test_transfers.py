"""Tests of bench.engine.transfers, and of the simulated device that counts waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.engine.transfers import to_device
from tests.fixtures.simulated_device import DEVICE, SimulatedDevice

CPU = torch.device("cpu")


def test_values_of_the_host_are_not_copied_to_the_host() -> None:
    values = torch.arange(3)
    assert to_device(values, CPU) is values


def test_a_copy_to_a_device_is_no_wait_and_keeps_the_values() -> None:
    values = torch.arange(3)
    with SimulatedDevice() as device:
        moved = to_device(values, DEVICE)
        assert moved.device == DEVICE and device.total == 0
        assert to_device(moved, DEVICE) is moved
        assert moved.tolist() == [0, 1, 2] and device.total == 1


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x[0]),
    "any": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to the host": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where with one argument": lambda x: torch.where(x > 0),
    "unique": lambda x: torch.unique(x),
    "a mask": lambda x: x[x > 0],
    "masked select": lambda x: x.masked_select(x > 0),
    "assignment of a tensor by a mask": lambda x: x.__setitem__(x > 0, x[:1]),
    "equality": lambda x: torch.equal(x, x),
    "an index of the host": lambda x: x[torch.tensor([0])],
    "a list as an index": lambda x: x[[0]],
    "values of the host": lambda x: torch.tensor([1.0], device=DEVICE),
    "a copy from ordinary memory": lambda x: torch.ones(1).to(DEVICE),
    "repetition by a tensor": lambda x: x.repeat_interleave(x.long()),
}


@pytest.mark.parametrize("read", WAITS.values(), ids=WAITS.keys())
def test_each_read_of_the_device_is_one_wait(read: Callable[[Tensor], object]) -> None:
    with SimulatedDevice() as device:
        x = torch.ones(4, device=DEVICE)
        read(x)
    assert device.total == 1, device.waits


QUEUED: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x + 1) * x.mean(),
    "an index of the device": lambda x: x[torch.arange(2, device=DEVICE)],
    "a slice": lambda x: x[1:3],
    "assignment of a number by a mask": lambda x: x.__setitem__(x > 0, 0),
    "where with three arguments": lambda x: torch.where(x > 0, x, 0),
    "a gradient": lambda x: torch.autograd.grad((x.requires_grad_() ** 2).sum(), x)[0] + x,
    "an asynchronous copy": lambda x: x.to("cpu", non_blocking=True),
    "another type": lambda x: x.to(torch.float64).double() + x.to(x),
    "a shape": lambda x: (len(x), x.shape, x.numel(), x.dtype),
}


@pytest.mark.parametrize("work", QUEUED.values(), ids=QUEUED.keys())
def test_queued_work_is_no_wait(work: Callable[[Tensor], object]) -> None:
    with SimulatedDevice() as device:
        x = torch.ones(4, device=DEVICE)
        work(x)
    assert device.total == 0, device.waits


def test_tensors_of_the_device_and_of_the_cpu_do_not_mix() -> None:
    with SimulatedDevice():
        x = torch.ones(4, device=DEVICE)
        with pytest.raises(RuntimeError, match="of the device and of the CPU"):
            x + torch.ones(4)
        with pytest.raises(RuntimeError, match="indexed by one of the device"):
            torch.ones(4)[torch.zeros(1, dtype=torch.int64, device=DEVICE)]
        with pytest.raises(TypeError, match="copy it first"):
            x.numpy()
        assert (x + torch.tensor(1.0)).tolist() == [2] * 4  # a scalar of the host is allowed

"""Helper: runs a cell on the simulated device and counts the waits of the host."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bench.engine.cell_spec import Candidates, CellSpec, Confirm, concatenate, select_rows
from bench.engine.runner import run_attack
from bench.referee.referee import Referee
from tests.engine.single_run import SingleRun
from tests.fixtures.simulated_device import DEVICE, SimulatedDevice


class DeviceRun(NamedTuple):
    """A run on the simulated device."""

    candidates: Candidates
    """In item order, on the host."""
    steps: int
    """Steps of the engine; a batch of speculative queries counts as one."""
    waits: dict[str, int]
    """Waits after the first step, by function and line."""


def on_device(single: SingleRun, slots: int = 64, *, rule: Confirm | None = None) -> DeviceRun:
    """A run on the simulated device; `rule` replaces the referee's."""
    device, steps = SimulatedDevice(), [0]

    def beat() -> None:
        steps[0] += 1
        device.counting = True

    device.counting = False
    with device:
        spec, referee = moved_cell(single.spec(slots), single)
        parts = list(run_attack(replace(spec, heartbeat=beat), rule or referee.confirm))
        device.counting = False
    return DeviceRun(in_item_order(parts), steps[0], dict(device.waits))


def on_host(single: SingleRun, slots: int = 64, *, rule: Confirm | None = None) -> Candidates:
    """The candidates of the same run on the CPU."""
    spec = single.spec(slots)
    return in_item_order(list(run_attack(spec, rule or single.referee(spec).confirm)))


def nothing(items: Tensor, images: Tensor) -> Tensor:
    """[k] bool: confirms none of the images [k, C, H, W]."""
    return torch.zeros_like(items, dtype=torch.bool)


def moved_cell(spec: CellSpec, single: SingleRun) -> tuple[CellSpec, Referee]:
    """A cell and its referee on the simulated device."""
    referee = single.referee(spec)
    names = ("x", "y", "target", "clean_logits", "reached_on_clean")
    spec = replace(spec, **{name: getattr(spec, name).to(DEVICE) for name in names})
    referee.x, referee.y, referee.target = spec.x, spec.y, spec.target
    return spec, referee


def in_item_order(parts: list[Candidates]) -> Candidates:
    """The candidates of all chunks in item order, as plain tensors."""
    whole = Candidates(*(column.as_subclass(Tensor) for column in concatenate(parts)))
    return select_rows(whole, whole.item.argsort())


def differences(one: Candidates, other: Candidates) -> list[str]:
    """The columns in which two runs differ in any bit."""
    pairs = zip(Candidates._fields, one, other, strict=True)
    return [name for name, first, second in pairs if not torch.equal(first, second)]

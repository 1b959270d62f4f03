"""How many workers a run starts by default: devices, cores, memory and cells, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bench.evaluation import worker_count
from bench.evaluation.worker_count import default_workers, usable_cores, usable_memory

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, 64 GiB, no CUDA device."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(worker_count, "usable_cores", lambda: 8)
    monkeypatch.setattr(worker_count, "usable_memory", lambda: 64 * GIB)
    return monkeypatch


@pytest.mark.parametrize(
    ("device", "devices", "workers"),
    [("auto", 1, 1), ("auto", 3, 3), ("cuda", 3, 1), ("cuda:1", 3, 1), ("cpu", 3, 8)],
)
def test_each_cuda_device_has_a_worker(
    device: str, devices: int, workers: int, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(torch.cuda, "device_count", lambda: devices)
    assert default_workers(device, 1000).workers == workers


@pytest.mark.parametrize(
    ("memory", "cells", "count", "reason"),
    [
        (64, 1000, 8, "one for each of 8 cores"),
        (4, 1000, 2, "1.5 GiB for each of 4.0 GiB"),
        (1, 1000, 1, "1.5 GiB for each of 1.0 GiB"),
        (64, 71, 2, "71 open cells, 24 for each"),
        (64, 0, 1, "0 open cells, 24 for each"),
        (64, 192, 8, "one for each of 8 cores"),
    ],
)
def test_on_the_cpu_cores_memory_and_cells_decide(
    memory: int, cells: int, count: int, reason: str, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(worker_count, "usable_memory", lambda: memory * GIB)
    for device in ("auto", "cpu"):
        assert default_workers(device, cells) == (count, reason)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 6), ("150000 100000", 1), ("400000 100000", 4), ("", 6)]
)
def test_the_quota_of_a_container_limits_the_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(worker_count, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("available", "limit", "used", "expected"),
    [(8, None, None, 8), (8, 4, 1, 3), (2, 4, 1, 2), (8, 4, 5, 0), (None, 4, 1, 3)],
)
def test_the_limit_of_a_container_limits_the_memory(
    available: int | None, limit: int | None, used: int | None, expected: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines = "MemTotal: 1 kB\n"
    if available is not None:
        lines += f"MemAvailable: {available * GIB // 1024} kB\n"
    (tmp_path / "meminfo").write_text(lines)
    for name, value in (("max", limit), ("current", used)):
        text = "max" if value is None else str(value * GIB)
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(worker_count, "CGROUP", tmp_path)
    monkeypatch.setattr(worker_count, "MEMORY_INFO", tmp_path / "meminfo")
    assert usable_memory() == expected * GIB

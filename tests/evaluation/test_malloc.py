"""Malloc thresholds: freed batch buffers stay with the process."""

from __future__ import annotations

import platform

import pytest
import torch

from bench.evaluation.malloc import raise_thresholds

PAGES = 2**22 * 4 // 4096  # memory pages of all layers together


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this allocator has no mallopt")
def test_further_batches_cause_no_page_faults() -> None:
    import resource

    assert raise_thresholds()
    seen = []
    for _ in range(12):
        layers = [torch.ones(2**18) for _ in range(16)]
        del layers
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert seen[-1] - seen[-7] < 6 * PAGES / 10

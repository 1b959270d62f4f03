"""The allocator keeps what a batch has used."""

from __future__ import annotations

import platform

import pytest
import torch

from bench.evaluation.malloc import raise_thresholds

PAGES = 2**22 * 4 // 4096  # of all layers


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_batch_after_batch_faults_nothing_in() -> None:
    import resource

    assert raise_thresholds()
    seen = []
    for _ in range(12):
        layers = [torch.ones(2**18) for _ in range(16)]
        del layers
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert seen[-1] - seen[-7] < 6 * PAGES / 10

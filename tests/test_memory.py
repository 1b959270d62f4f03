"""The allocator keeps what a batch has used."""

from __future__ import annotations

import platform

import pytest
import torch

from bench.engine.memory import keep

PAGES = 2**22 * 4 // 4096  # of the block below


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_second_batch_faults_nothing_in() -> None:
    import resource

    assert keep()

    def faults() -> int:
        torch.ones(2**22)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    faults()
    before = faults()
    assert faults() - before < PAGES / 10

"""One torch thread and a fixed torch seed for every test, in every worker process."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """Fix the seed for random numbers that a test module draws on import."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fix the seed for random numbers of a test and its fixtures."""
    torch.manual_seed(0)
